"""A pretraining and a fine-tuning run on a few clips, as the programs leave them, for what reads runs."""

from __future__ import annotations

from pathlib import Path

import torch
from support.processes import run_ranks
from support.shards import make_shards

from engine.config import PretrainConfig, parse_config
from engine.parallel.world import distributed
from engine.tasks import finetune as finetuning
from engine.tasks import pretrain as pretraining
from engine.tasks.finetune_config import FinetuneConfig

_SIZES = [
    "model.name=cav_mae_tiny", "model.image_size=32", "model.audio_length=64", "model.embed_dim=24",
    "model.num_heads=2", "model.modality_depth=1", "train.log_interval=1", "train.parallel.global_batch_size=6",
    "schedule.kind=constant", "data.num_workers=0",
]  # fmt: skip
_DECODER = ["model.decoder_embed_dim=16", "model.decoder_depth=1", "model.decoder_num_heads=2"]


def make_runs(folder: Path) -> Path:
    """Makes ``folder/pretrain``, resumed once, and ``folder/finetune``, evaluated; returns ``folder``."""
    make_shards(folder / "shards", 18, 6, seconds=0.7, size=(48, 40), frames=3)
    make_shards(
        folder / "few", 9, 9, seconds=0.7, size=(48, 40), frames=3
    )  # too few for probes, which take long
    run_ranks("support.small_runs:train", 1, folder=str(folder))
    return folder


def train(folder: str) -> bool:
    """Both runs, in a process group. What a device could do is made up: measuring it takes as long as both."""
    torch.set_num_threads(1)
    pretraining.measured_peak_flops = finetuning.measured_peak_flops = lambda *_: 1e11
    data, run = [*_SIZES, f"data.train={folder}/shards"], f"{folder}/pretrain"
    with distributed() as world:
        for steps, looked_at in ((2, [f"data.val={folder}/few", "train.eval_interval=2"]), (4, [])):
            words = [*data, *_DECODER, f"output_dir={run}", f"train.steps={steps}", *looked_at]
            assert pretraining.pretrain(*parse_config(PretrainConfig, "test", words), world)
        # As a run that looks at held-out clips to its end.
        config = Path(run, "config.yaml")
        config.write_text(config.read_text().replace("val: null", f"val: {folder}/few"))
        words = [
            *data,
            f"data.val={folder}/few",
            f"output_dir={folder}/finetune",
            f"init={run}",
            "train.steps=2",
        ]
        words += ["evaluation.bootstrap=20", "evaluation.all_frames=false", "evaluation.pictures=false"]
        words += ["objective.loss=cross_entropy"]
        assert finetuning.finetune(*parse_config(FinetuneConfig, "test", words), world)
    return True
