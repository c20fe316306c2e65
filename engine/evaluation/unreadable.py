"""Clips of a set that could not be read when it was gone through once: named, counted, and an error where too many."""

from __future__ import annotations

from datasets.batch import FailureBudget, ReadFailure
from engine.parallel.world import World
from engine.records.runlog import logger

#: Until a set has more clips, as many may fail as of this many.
_GRACE = 100


def gather_failures(
    failures: list[ReadFailure], num_read: int, world: World, max_fraction: float
) -> list[ReadFailure]:
    """Every rank's failures; the log names each. Every rank calls it, and all raise alike.

    Args:
        failures: This rank's.
        num_read: Clips that this rank could read.
        world: The processes.
        max_fraction: ``data.max_bad_fraction``.

    Raises:
        TooManyFailuresError: More clips can't be read than that.
        ValueError: No clip at all could be read.
    """
    gathered = world.gather_objects(([tuple(failure) for failure in failures], num_read))
    everywhere = [ReadFailure(*failure) for part, _ in gathered for failure in part]
    total = sum(count for _, count in gathered)
    for failure in everywhere:
        logger.warning("left out, can't be read: %s in %s: %s", failure.id, failure.shard, failure.reason)
    named = {failure.id: failure for failure in everywhere}
    FailureBudget(max_fraction, _GRACE, total + len(everywhere), len(everywhere), named).check()
    if not total:
        raise ValueError("the set has no clip that could be read")
    return everywhere
