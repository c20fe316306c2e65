"""Compares every registered objective on the generated world at equal processor minutes.

    python benchmarks/objectives.py --out runs/objectives --write docs/objectives.md
    python benchmarks/objectives.py --out runs/objectives --kinds cav_mae equiav --minutes 0.5 --seeds 0

An objective comes with ``configs/pretrain_KIND_tiny.yaml``. Measured on test clips: retrieval and linear probes at the
end of pretraining, and fine-tuning by sound, by picture and by both. A second stage has its minutes beside its
teacher's. The table is written after every objective; `comparison.py` says how runs are made equal.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import Comparison, add_options, find_candidates, make_world
from benchmarks.comparison_page import OBJECTIVES
from engine.objectives.registry import list_objectives
from home_paths import command_line


def main() -> None:
    """Runs the comparison, or what is left of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/objectives")
    parser.add_argument("--kinds", nargs="+", default=None, choices=list_objectives(), help="all by default")
    options = parser.parse_args(command_line())
    make_world(options.data)
    comparison = Comparison(options.data, options.out, options.minutes, options.seeds)
    found = find_candidates(options.kinds or list_objectives())
    comparison.run(found, options.jobs, OBJECTIVES, options.write)


if __name__ == "__main__":
    main()
