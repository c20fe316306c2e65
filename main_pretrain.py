"""Pretrains a joint audio-visual masked autoencoder on shards of video.

    python main_pretrain.py --config configs/pretrain_cav_mae_tiny.yaml data.train=SHARDS
    torchrun --standalone --nproc_per_node 8 main_pretrain.py --config ...

The same command again resumes the run. Exit status: 0 finished, 75 stopped on request with a checkpoint written
(run it again), 2 wrong config, 1 anything else.
"""

from __future__ import annotations

import sys

from engine.namesake import check_datasets
from engine.signals import STOP


def main() -> int:
    """Runs what the command line says; returns the exit status."""
    STOP.listen()
    check_datasets()
    from engine.cli import run_program
    from engine.config import PretrainConfig
    from engine.tasks.pretrain import pretrain

    return run_program("main_pretrain.py", PretrainConfig, pretrain)


if __name__ == "__main__":
    sys.exit(main())
