"""A pretraining run of TG-DP and a fine-tuning run of its encoders, in one process."""

from __future__ import annotations

from engine.config import PretrainConfig, parse_config
from engine.parallel.world import distributed
from engine.tasks.finetune import finetune
from engine.tasks.finetune_config import FinetuneConfig
from engine.tasks.pretrain import pretrain

MODEL = [
    "model.name=cav_mae_sync_tiny", "model.image_size=32", "model.audio_length=64", "model.segment_length=32",
    "model.num_registers=2", "model.embed_dim=24", "model.num_heads=2", "model.modality_depth=1",
    "model.decoder_embed_dim=16", "model.decoder_depth=1", "model.decoder_num_heads=2",
]  # fmt: skip
TRAIN = [
    "data.num_workers=0", "train.log_interval=1", "train.parallel.global_batch_size=4", "train.parallel.precision=fp32",
]  # fmt: skip


def pretrain_and_finetune(shards: str, folder: str) -> list[bool]:
    """Two steps each; the second run is evaluated with frozen features."""
    data = [f"data.train={shards}", f"data.val={shards}", *TRAIN, *MODEL, "train.steps=2"]
    objective = ["objective.kind=tg_dp", "objective.frames=3", "objective.momentum=0.5"]
    evaluation = [
        f"evaluation.shards={shards}",
        "evaluation.bootstrap=20",
        "evaluation.pictures=false",
        "evaluation.frozen_features=true",
    ]
    with distributed() as world:
        words = [*data, *objective, f"output_dir={folder}/tg_dp", "train.eval_interval=2"]
        done = [pretrain(*parse_config(PretrainConfig, "test", words), world)]
        tuned = [*data, *evaluation, f"output_dir={folder}/tuned", f"init={folder}/tg_dp", "fit_head=true"]
        return [*done, finetune(*parse_config(FinetuneConfig, "test", tuned), world)]
