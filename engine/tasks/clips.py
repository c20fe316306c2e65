"""The loaders of a run: what its objective needs of clips, on the run's data, for this rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from datasets.loading.config import ClipNeeds, DataConfig
from datasets.loading.loader import ClipLoader, TrainShare, evaluation_loader, open_store, train_loader
from datasets.loading.plan import EvaluationPlan, SamplePlan
from datasets.loading.sampling import SamplingConfig
from engine.config import RunConfig
from engine.parallel.world import World

Plan = TypeVar("Plan")


def training_clips(
    config: RunConfig,
    world: World,
    needs: ClipNeeds,
    step: int,
    skipped: Collection[int],
    sampling: SamplingConfig | None = None,
) -> ClipLoader[SamplePlan]:
    """This rank's micro-batches from ``step`` on, without end; every rank calls it.

    Args:
        config: The run.
        world: The processes.
        needs: What is read of a clip.
        step: The first step.
        skipped: Steps without a batch.
        sampling: Which clips are drawn how often, and mixed; None is each once an epoch.

    Raises:
        ShardError: A set is missing or damaged, or a shard of it; every rank raises what rank 0 finds.
    """
    parallel = config.train.parallel
    share = TrainShare(
        seed=config.seed,
        global_batch_size=parallel.global_batch_size,
        num_micro_batches=parallel.accumulation_steps,
        rank=world.rank,
        world_size=world.size,
        start_step=step,
        skipped_steps=sorted(skipped),
    )
    return _main_first(lambda: train_loader(config.data, needs, share, sampling), world)


def _main_first(make: Callable[[], ClipLoader[Plan]], world: World) -> ClipLoader[Plan]:
    """This rank's loader, once rank 0, which looks at every shard, has made its own."""
    made: list[ClipLoader[Plan]] = []
    world.from_main(lambda: made.append(make()))
    return made[0] if made else make()


def fingerprint(config: DataConfig, world: World) -> str:
    """Tells the training set, or the sets together, from others: shards with their hashes, and classes."""

    def find() -> str:
        indices = [open_store(config, part.path).open_index()[0] for part in config.train_sets]
        return hashlib.sha256("\n".join(index.fingerprint for index in indices).encode()).hexdigest()

    return world.from_main(find)


def held_out_clips(
    config: RunConfig,
    world: World,
    needs: ClipNeeds,
    location: str,
    batch_size: int,
    chosen: NDArray[np.int64] | None = None,
) -> ClipLoader[EvaluationPlan]:
    """This rank's whole batches of a set, each clip once over all ranks; can be iterated again and again.

    Every rank calls it.

    Args:
        config: The run.
        world: The processes.
        needs: What is read of a clip.
        location: Folder or URL of the set.
        batch_size: Clips to a batch; the same in every world gives the same numbers in every world.
        chosen: Rows to read; None for all.

    Raises:
        ShardError: As of `training_clips`.
    """
    return _main_first(
        lambda: evaluation_loader(
            config.data,
            location,
            needs,
            batch_size=batch_size,
            rank=world.rank,
            world_size=world.size,
            whole_batches=True,
            chosen=chosen,
        ),
        world,
    )
