"""A small model, made-up batches and a trainer around them, for tests that need no shards."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.nn.functional import all_gather

from datasets.batch import AVBatch
from datasets.loading.loader import DataConfig
from engine.config import RunConfig
from engine.objectives.base import LrGroup, Objective
from engine.objectives.cav_mae import CavMae, CavMaeConfig
from engine.parallel.deepspeed_engine import ParallelConfig, build_engine, partition_gradients
from engine.parallel.world import World, distributed, gather_rows
from engine.training.optimizer import OptimizerConfig, build_optimizer, clip_gradients
from engine.training.schedule import ScheduleConfig
from engine.training.stop import StopRequest
from engine.training.train_config import TrainConfig
from engine.training.trainer import Trainer, TrainingData
from models import AudioVisualMAE, CavMaeModelConfig, FbankConfig

NUM_CLIPS = 24


def small_model_config(**overrides: Any) -> CavMaeModelConfig:
    sizes: dict[str, Any] = {"image_size": 32, "audio_length": 32, "num_mel_bins": 32, "embed_dim": 24}
    rest = {"num_heads": 2, "modality_depth": 1, "decoder_embed_dim": 16, "decoder_depth": 1}
    return CavMaeModelConfig(name="cav_mae_tiny", decoder_num_heads=2, **{**sizes, **rest, **overrides})


def small_objective(seed: int = 0, **settings: Any) -> CavMae:
    torch.manual_seed(seed)
    config = small_model_config()
    fbank = FbankConfig(target_length=config.audio_length, num_mel_bins=config.num_mel_bins)
    return CavMae(AudioVisualMAE(config), fbank, CavMaeConfig(**{"contrast_weight": 0.1, **settings}))


def make_batch(rows: list[int]) -> AVBatch:
    """Clips that are functions of their row: noise of their own, one frame."""
    waveforms, frames = [], []
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        waveforms.append(torch.randint(-8000, 8000, (5600,), generator=generator, dtype=torch.int16))
        frames.append(torch.randint(0, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8))
    return AVBatch(
        ids=[f"clip{row}" for row in rows],
        rows=torch.tensor(rows),
        seeds=torch.tensor(rows) * 7919 + 1,
        waveform=torch.stack(waveforms),
        num_samples=torch.full((len(rows),), 5600),
        frames=torch.stack(frames),
    )


def micro_batches(
    rank: int, world_size: int, parallel: ParallelConfig, start_step: int, skipped: Collection[int]
) -> Iterator[AVBatch]:
    """The same global batches for every world size: rows in order, round and round."""
    size, step = parallel.micro_batch_size(world_size), start_step
    while True:
        if step not in skipped:
            for micro in range(parallel.accumulation_steps):
                first = step * parallel.global_batch_size + (micro * world_size + rank) * size
                yield make_batch([(first + i) % NUM_CLIPS for i in range(size)])
        step += 1


def make_trainer(
    world: World,
    run: Path,
    train: TrainConfig,
    optimizer: OptimizerConfig | None = None,
    objective: Objective | None = None,
    loader: Callable[[int, Collection[int]], Iterator[AVBatch]] | None = None,
    **options,
) -> Trainer:
    def all_batches(start_step: int, skipped: Collection[int]) -> Iterator[AVBatch]:
        return micro_batches(world.rank, world.size, train.parallel, start_step, skipped)

    config = RunConfig(
        data=DataConfig(train="batches are made up"),
        output_dir=str(run),
        train=train,
        optimizer=optimizer or OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup_epochs=1),
    )
    data = TrainingData(NUM_CLIPS, loader or all_batches)
    trainer = Trainer(objective or small_objective(), config, data, world, "model: small\n", **options)
    trainer.stop = StopRequest(world, period=0)  # tests say after which step, and steps are short
    return trainer


def gradients(cases: list[dict]) -> list[dict]:
    """For each case one step's loss, gradient norm and gradients by name, in one process group."""
    with distributed() as world:
        return [_gradients(world, **case) for case in cases]


def _gradients(
    world: World,
    zero_stage: Any,
    accumulation: int,
    clip: float | None = None,
    precision: Any = "fp32",
    overlap_comm: bool = False,
    **settings: Any,
) -> dict:
    from deepspeed.utils import safe_get_full_grad

    parallel = ParallelConfig(
        global_batch_size=8,
        accumulation_steps=accumulation,
        zero_stage=zero_stage,
        precision=precision,
        overlap_comm=overlap_comm,
    )
    objective = small_objective(**settings)
    optimizer = build_optimizer(OptimizerConfig(), objective.model, objective.no_weight_decay())
    engine = build_engine(objective, optimizer, parallel, world)
    batches = micro_batches(world.rank, world.size, parallel, 0, ())
    loss, norm, grads = torch.zeros(()), torch.zeros(()), {}
    for number in range(1, accumulation + 1):
        values = engine(next(batches))
        engine.backward(values["loss"])
        loss += values["loss"].detach() / accumulation
        if number == accumulation:
            norm = clip_gradients(partition_gradients(engine, zero_stage), clip, partitioned=zero_stage > 0)
            full = {name: safe_get_full_grad(p) for name, p in objective.model.named_parameters()}
            grads = {name: grad.clone() for name, grad in full.items() if grad is not None}
        engine.step()
    overlaps = getattr(engine.optimizer, "overlap_comm", False)
    return {"loss": world.sum(loss) / world.size, "norm": norm, "grads": grads, "overlaps": overlaps}


def fit(
    world: World,
    run: str,
    steps: int,
    zero_stage: Any = 0,
    accumulation: int = 1,
    signal_rank: int = -1,
    signal_step: int = -1,
    lone_group: bool = False,
) -> dict:
    """Trains to ``steps``; one rank may send itself SIGTERM while it reads the batch of ``signal_step``.

    With ``lone_group`` one number has a group of its own, of which other ranks than the first hold padding alone.
    """
    parallel = ParallelConfig(
        global_batch_size=12, accumulation_steps=accumulation, zero_stage=zero_stage, precision="fp32"
    )
    train = TrainConfig(steps=steps, log_interval=1, checkpoint_interval=4, parallel=parallel)

    def loader(start_step: int, skipped: Collection[int]) -> Iterator[AVBatch]:
        batches = micro_batches(world.rank, world.size, parallel, start_step, skipped)
        for number, batch in enumerate(batches):
            if world.rank == signal_rank and number == (signal_step - start_step) * accumulation:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    objective = small_objective() if not lone_group else with_lone_group()
    trainer = make_trainer(world, Path(run), train, objective=objective, loader=loader)
    finished = trainer.fit()
    inner = getattr(trainer.engine.optimizer, "optimizer", trainer.engine.optimizer)
    assert all(
        s["step"].device == p.device and s["step"].dtype == torch.float32 for p, s in inner.state.items()
    )
    return {"finished": finished, "step": trainer.step}


class _Scaled(CavMae):
    def lr_groups(self) -> dict[str, LrGroup]:
        return {"scale": LrGroup("scale", 2.0)}

    def forward(self, batch: AVBatch) -> dict[str, torch.Tensor]:
        values = super().forward(batch)
        scale = self.model.scale
        assert isinstance(scale, torch.Tensor)
        return values | {"loss": values["loss"] * (1 + scale).squeeze()}


def with_lone_group(**settings: Any) -> CavMae:
    """A small objective of which one number is a group of its own, and scales the loss."""
    base = small_objective(**settings)
    base.model.register_parameter("scale", torch.nn.Parameter(torch.zeros(1)))
    return _Scaled(base.model, base.audio_front_end.config, base.config)


def gathered() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of all ranks and the gradient of this rank's own, by `gather_rows` and by torch's function over lists."""
    found = []
    with distributed() as world:
        generator = torch.Generator().manual_seed(world.rank)
        values = torch.randn(3, 5, 2, generator=generator)
        weights = torch.randn(2, 5, 3 * world.size, generator=generator)
        for gather in (gather_rows, lambda rows: _contiguously(torch.cat(all_gather(rows)))):
            rows = values.clone().requires_grad_()
            everyone = gather(rows)
            # Through a transposed view, so that the gradient arrives transposed in memory.
            (everyone.permute(2, 1, 0) * weights).sum().backward()
            assert rows.grad is not None
            found.append((everyone.detach(), rows.grad))
    return found


def _contiguously(everyone: torch.Tensor) -> torch.Tensor:
    everyone.register_hook(lambda gradient: gradient.contiguous())
    return everyone


def fits(runs: list[dict]) -> list[dict]:
    """`fit`, one run after the other in one process group."""
    with distributed() as world:
        return [fit(world, **run) for run in runs]
