"""Every file is written by `atomic`: whole or not at all, and through no link that somebody planted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What a file that `atomic` opened, or a buffer in memory, is called where a library writes into it.
OPENED = {"file", "buffer", "temporary", "text"}
#: Calls that write to a path, by the name of the function or method.
WRITERS = {
    "write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "imwrite", "write_png", "write_jpeg", "savefig",
    "SummaryWriter", "copy", "copy2", "copyfile", "copytree", "mkfifo", "FileHandler",
    "to_csv", "to_parquet", "tofile",
}  # fmt: skip
#: Those that take a path or an open file as their first argument, or as the one of this place.
LIBRARIES = {
    "torch.save": 1, "torch.export.save": 1, "torch.onnx.export": 2, "save_file": 1, "np.save": 0, "np.savez": 0,
    "np.savez_compressed": 0, "pq.ParquetWriter": 0, "soundfile.write": 0, "sqlite3.connect": 0,
}  # fmt: skip
#: What is written otherwise, and why that follows no link.
ALLOWED = {
    "atomic.py": "is the writer",
    "engine/records/runlog.py:SummaryWriter": "names files anew, in a run's folder without links",
    "models/export/program.py:torch.export.save": "into a folder that was found empty",
    "models/export/program.py:torch.onnx.export": "into a folder that was found empty",
    "datasets/prepare/plan_db.py:sqlite3.connect": "in a folder that it made itself",
    "datasets/check.py:sqlite3.connect": "a file without a name",
    "launch/snapshot.py:copy2": "into a folder that it made itself",
    "engine/training/run_lock.py:open": "a name that nothing may have yet",
    "benchmarks/prepare.py:copyfile": "in a temporary folder",
    "benchmarks/prepare.py:open": "in a temporary folder",
    "benchmarks/planning.py:os.open": "in a temporary folder",
}


def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every call that may write to a path which `atomic` did not open."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        receiver, _, last = name.rpartition(".")
        words = [ast.unparse(value) for value in (*node.args, *(k.value for k in node.keywords))]
        given = [word for word in words if word.startswith(("'", '"'))]
        if last == "open" and any(set(word[1:-1]) & set("wax+") and len(word) <= 6 for word in given):
            if words[0] not in OPENED:
                yield node.lineno, last
        elif name == "os.open":
            if words[0] != "os.devnull" and not {"O_NOFOLLOW", "O_RDONLY"} & set(
                re.findall(r"O_\w+", str(words))
            ):
                yield node.lineno, name
        elif name in LIBRARIES:
            place = LIBRARIES[name]
            if place >= len(words) or words[place] not in OPENED:
                yield node.lineno, name
        elif last in WRITERS and receiver not in OPENED | {"copy"} and (words or last == "touch"):
            yield node.lineno, last
        elif last == "save" and {"'PNG'", "'JPEG'"} & set(words[1:]) and words[0] not in OPENED:
            yield node.lineno, "Image.save"


def sources() -> Iterator[Path]:
    for folder in ("models", "engine", "datasets", "launch", "examples", "benchmarks"):
        yield from (ROOT / folder).rglob("*.py")
    yield from ROOT.glob("*.py")


def test_every_file_is_written_by_the_one_writer() -> None:
    used, wrong = set(), []
    for path in sources():
        file = str(path.relative_to(ROOT))
        for line, what in writes(ast.parse(path.read_text())):
            reason = next((key for key in (file, f"{file}:{what}") if key in ALLOWED), None)
            used.add(reason)
            if reason is None:
                wrong.append(f"{file}:{line} {what}")
    assert not wrong, (
        f"{wrong}: write these by atomic.write_atomically, replacing, replacing_by_name or open_to_append"
    )
    assert used >= ALLOWED.keys(), "no longer needed"


def test_the_walk_finds_what_writes() -> None:
    code = """
open(path, "w"); path.open("ab"); open(path, mode="r+"); path.write_text(x); torch.save(state, path)
np.savez(path, **columns); Image.fromarray(x).save(path, "PNG"); SummaryWriter(path); av.open(path, "w")
shutil.copy(a, b); os.open(path, os.O_WRONLY | os.O_CREAT); sqlite3.connect(path); torch.onnx.export(a, (), path)
"""
    assert len(list(writes(ast.parse(code)))) == 13
    assert not list(
        writes(ast.parse('open(path); path.open("rb"); np.savez(file); image.save(buffer, "PNG")'))
    )
