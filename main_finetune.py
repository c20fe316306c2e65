"""Fine-tunes the encoders of a pretraining run on labelled shards, and evaluates them.

    python main_finetune.py --config configs/finetune_tiny.yaml init=RUN data.train=SHARDS data.val=SHARDS
    torchrun --standalone --nproc_per_node 8 main_finetune.py --config ...
    python main_finetune.py --config RUN/config.yaml --eval_only true

The same command again resumes the run. Exit status: 0 finished, 75 stopped on request with a checkpoint
written (run it again), 2 wrong config, 1 anything else.
"""

from __future__ import annotations

import sys

from engine.namesake import check_datasets
from engine.signals import STOP

if __name__ == "__main__":
    STOP.listen()
    check_datasets()
    from engine.cli import run_program
    from engine.tasks.finetune import finetune
    from engine.tasks.finetune_config import LabelledConfig

    sys.exit(run_program("main_finetune.py", LabelledConfig, finetune))
