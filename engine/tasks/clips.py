"""The loaders of a run: what its objective needs of clips, on the run's data, for this rank."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from datasets.loading.config import ClipNeeds, DataConfig
from datasets.loading.loader import ClipLoader, TrainShare, evaluation_loader, open_store, train_loader
from datasets.loading.plan import EvaluationPlan, SamplePlan
from datasets.loading.sampling import SamplingConfig
from engine.config import RunConfig
from engine.parallel.world import World


def training_clips(
    config: RunConfig,
    world: World,
    needs: ClipNeeds,
    step: int,
    skipped: Collection[int],
    sampling: SamplingConfig | None = None,
) -> ClipLoader[SamplePlan]:
    """This rank's micro-batches from ``step`` on, without end.

    Args:
        config: The run.
        world: The processes.
        needs: What is read of a clip.
        step: The first step.
        skipped: Steps without a batch.
        sampling: Which clips are drawn how often, and mixed; None is each once an epoch.
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
    return train_loader(config.data, needs, share, sampling)


def fingerprint(config: DataConfig) -> str:
    """Tells the training set, or the sets together, from others: shards with their hashes, and classes."""
    indices = [open_store(config, part.path).open_index()[0] for part in config.train_sets]
    return hashlib.sha256("\n".join(index.fingerprint for index in indices).encode()).hexdigest()


def held_out_clips(
    config: RunConfig,
    world: World,
    needs: ClipNeeds,
    location: str,
    batch_size: int,
    chosen: NDArray[np.int64] | None = None,
) -> ClipLoader[EvaluationPlan]:
    """This rank's whole batches of a set, each clip once over all ranks; can be iterated again and again.

    Args:
        config: The run.
        world: The processes.
        needs: What is read of a clip.
        location: Folder or URL of the set.
        batch_size: Clips to a batch; the same in every world gives the same numbers in every world.
        chosen: Rows to read; None for all.
    """
    return evaluation_loader(
        config.data,
        location,
        needs,
        batch_size=batch_size,
        rank=world.rank,
        world_size=world.size,
        whole_batches=True,
        chosen=chosen,
    )
