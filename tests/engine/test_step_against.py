"""`benchmarks/step.py --against`: two checkouts by turns."""

from pathlib import Path

from benchmarks.step import compare

STEP = """\
import json, sys
from pathlib import Path
turns = Path("turns")
number = len(turns.read_text().splitlines()) if turns.is_file() else 0
turns.write_text((turns.read_text() if number else "") + " ".join(sys.argv[1:]) + "\\n")
seconds = [{times}][number]
print("a table")
print(json.dumps({{"seconds_per_step": seconds, "samples_per_second": 8 / seconds, "mfu": 0.4, "peak_memory_gb": 1.5}}))
"""


def checkout(folder: Path, times: str) -> Path:
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "benchmarks" / "step.py").write_text(STEP.format(times=times))
    return folder


def test_two_checkouts_are_timed_by_turns_with_the_same_options(tmp_path: Path):
    this, other = checkout(tmp_path / "this", "2, 9, 1"), checkout(tmp_path / "other", "3, 3, 50")
    options = {"model": "cav_mae_tiny", "batch_size": 8, "compile": True, "checkpointing": False, "steps": 5}
    table = compare([this, other], options, turns=3)
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[:-1]}
    assert rows["seconds_per_step"] == ["2", "3"]
    assert rows["samples_per_second"] == ["4", "2.66667"]
    assert table.splitlines()[-1] == (
        "this is 1.50 times as fast; seconds a step by turns: [2, 9, 1] and [3, 3, 50]"
    )
    words = "--model=cav_mae_tiny --batch_size=8 --compile --steps=5"
    for tree in (this, other):
        assert (tree / "turns").read_text().splitlines() == [words] * 3
