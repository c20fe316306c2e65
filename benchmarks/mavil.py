"""MAViL's stages and rounds against CAV-MAE and against longer training, on the generated world.

    python benchmarks/mavil.py --write docs/mavil.md

One stage is as many processor minutes as ``--minutes`` says. A second stage has them beside its teacher's, so it is set
against a first stage of twice the minutes. CAV-MAE is trained for the same minutes and for the same number of clips.
Measured on test clips at the end of pretraining: retrieval and linear probes. What `objectives.py` has trained in the
same folder is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import Candidate, Comparison, add_options, find_candidates, make_world
from benchmarks.comparison_page import MAVIL
from home_paths import command_line


def candidates() -> list[Candidate]:
    """What is compared; a teacher comes before its student."""
    cav_mae, stage_1, stage_2 = find_candidates(["cav_mae", "mavil", "mavil_self_training"])
    return [
        cav_mae,
        stage_1,
        replace(cav_mae, name="cav_mae, as many clips as mavil", clips_of=stage_1),
        replace(
            stage_1, name="mavil without contrast within a modality", words=("objective.intra_weight=0",)
        ),
        stage_2,
        replace(stage_1, name="mavil, twice as long", clips_of=stage_1, times=2),
        replace(stage_2, name="mavil_self_training, second round", teacher=stage_2),
    ]


def main() -> None:
    """Runs the comparison, or what is left of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/objectives")
    options = parser.parse_args(command_line())
    make_world(options.data)
    comparison = Comparison(options.data, options.out, options.minutes, options.seeds, finetune=False)
    comparison.run(candidates(), options.jobs, MAVIL, options.write)


if __name__ == "__main__":
    main()
