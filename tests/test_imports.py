"""The layers import one way, and the project's own packages are the ones imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "models",
    "datasets",
    "engine",
    "launch",
    "strict_yaml",
    "home_paths",
    "atomic",
    "terminal",
    "main_pretrain",
    "main_finetune",
}
#: Modules of every package's, which import nothing of ours.
SHARED = {"strict_yaml", "home_paths", "atomic", "terminal"}
#: What each package may import of ours and what it must never import.
ALLOWED = {
    "models": {"models"} | SHARED,
    "datasets": {"datasets"} | SHARED,
    "engine": {"engine", "models", "datasets"} | SHARED,
    "launch": {"launch"} | SHARED,
}
FORBIDDEN = {
    "models": {"deepspeed", "webdataset", "torch.distributed", "submitit"},
    "datasets": {"deepspeed", "torch.distributed", "submitit"},
    "engine": {"submitit"},
    "launch": {"torch", "deepspeed", "webdataset", "numpy", "av"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        for name in imported(path):
            top = name.split(".")[0]
            assert top not in OURS or top in ALLOWED[package], f"{path.relative_to(ROOT)} imports {name}"
            parts = [".".join(name.split(".")[: i + 1]) for i in range(name.count(".") + 1)]
            assert not FORBIDDEN[package] & set(parts), f"{path.relative_to(ROOT)} imports {name}"


def test_models_move_nothing_to_a_device_of_their_own() -> None:
    for path in (ROOT / "models").rglob("*.py"):
        assert ".cuda(" not in path.read_text(), path


def test_checkpoints_never_run_code() -> None:
    """`torch.load` only with ``weights_only=True``, and no pickle."""
    for package in (*ALLOWED, "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert not {"pickle", "cloudpickle", "joblib"} & imported(path), path
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_another_package_named_datasets_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    code = "import datasets, sys; sys.path.insert(0, sys.argv[1]); sys.modules.pop('engine', None)\n"
    code += "import importlib.util as u; s = u.spec_from_file_location('check', sys.argv[1] + '/engine/namesake.py')\n"
    code += "m = u.module_from_spec(s); s.loader.exec_module(m); m.check_datasets()"
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert str(tmp_path / "datasets") in result.stderr
    assert "another package" in result.stderr
