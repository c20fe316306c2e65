"""The notebook, run on a small model, and as it is committed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support.processes import environment

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "look_inside.ipynb"


@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_it_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = notebook.cells[1]
    assert settings.source.startswith("RUN = ")
    settings.source = f"RUN, SHARDS = {str(runs / 'pretrain')!r}, {str(runs / 'few')!r}"
    committed = [count_outputs(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert [count_outputs(cell) for cell in notebook.cells] == committed
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "9 clips of 9" in said
    assert re.search(r"own picture first for \d of 9 sounds", said)


def count_outputs(cell: dict[str, Any]) -> int:
    """What is printed counts once: it comes in one message or in several, as time has it."""
    outputs = cell.get("outputs", [])
    return len({out.get("name", number) for number, out in enumerate(outputs)})


def test_its_outputs_are_small_and_of_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 400_000
    outputs = [out for cell in json.loads(text)["cells"] for out in cell.get("outputs", [])]
    assert sum("image/jpeg" in out.get("data", {}) for out in outputs) == 5
    assert sum("audio controls" in str(out.get("data", {}).get("text/html")) for out in outputs) == 2
    assert not [out for out in outputs if out["output_type"] == "error" or out.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|opt|usr|Users)/", text)
