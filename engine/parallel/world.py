"""Processes: who this one is, what device it has, and what passes between them.

Everything reads torch's own variables (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), which torchrun
sets. A bare ``python main_pretrain.py`` is a world of one.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from engine.parallel.allocator import keep_freed_memory
from engine.parallel.devices import local_device

T = TypeVar("T")

_JOIN_SECONDS = 30.0  # joining takes a second or two


@dataclass(frozen=True)
class World:
    """This process among all of them.

    Attributes:
        rank: 0-based number among all processes.
        size: Number of processes.
        device: What this process computes on.
        control: A gloo group for messages that must not wait for the device (stop requests, ids); None for one process.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def gather_objects(self, value: object) -> list:
        """Every rank's ``value``, in rank order, on every rank (small host objects)."""
        if self.size == 1:
            return [value]
        gathered: list = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def gather_to_main(self, value: object) -> list | None:
        """Every rank's ``value``, in rank order, on rank 0, and None on the others (host objects, large ones too)."""
        if self.size == 1:
            return [value]
        gathered: list | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, gathered, dst=0, group=self.control)
        return gathered

    def from_main(self, find: Callable[[], T]) -> T:
        """What ``find`` gives on rank 0, on every rank; it is called on rank 0 alone (a small host object).

        Raises:
            Exception: What it raises on rank 0, on every rank: none is left waiting for the others.
        """
        if self.size == 1:
            return find()
        told: list[Any] = [_outcome(find) if self.is_main else None]
        dist.broadcast_object_list(told, src=0, group=self.control)
        found, error = told[0]
        if error is not None:
            raise error
        return found

    def gather_outcomes(self, find: Callable[[], T]) -> list[T]:
        """What ``find`` gives on each rank, in rank order, on every rank (small host objects).

        Raises:
            Exception: What it raises on any rank, on every rank: none is left waiting for the others.
        """
        if self.size == 1:
            return [find()]
        outcomes = self.gather_objects(_outcome(find))
        for _, error in outcomes:
            if error is not None:
                raise error
        return [found for found, _ in outcomes]

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


def _outcome(find: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What a function gives, or raises."""
    try:
        return find(), None
    except Exception as error:
        return None, error


def check_slurm_tasks(environment: Mapping[str, str], program: str) -> None:
    """Refuses to be one of several tasks of srun that know nothing of each other.

    Args:
        environment: This process's variables.
        program: The program's name.

    Raises:
        ValueError: SLURM started several tasks, and torch's variables are not set: each would be a world of one.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    if "RANK" in environment or "SLURM_PROCID" not in environment or not tasks.isdigit() or int(tasks) == 1:
        return
    raise ValueError(
        f"SLURM runs {tasks} tasks here, but RANK and WORLD_SIZE are not set: each task would train alone, all in one "
        f"folder. Submit with `python -m launch.submit --config LAUNCH.yaml -- {program} ...`, or start one task a "
        f"node with `srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc_per_node=PROCESSES "
        f"--rdzv_backend=c10d --rdzv_endpoint=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n1):29500 "
        f"{program} ...`; one process alone is `srun -n 1 python {program} ...`"
    )


@contextmanager
def distributed(timeout_minutes: float = 30.0) -> Iterator[World]:
    """Joins the process group for the time of the ``with`` block.

    The block ends with a barrier before the group is destroyed: without it gloo aborts a worker now and then after it
    has finished correctly. After an error there is no barrier, since the other ranks may never come to it; a process
    that is alone leaves its group, so that no communicator lives on into the interpreter's end.
    """
    world = _join(timedelta(minutes=timeout_minutes))
    try:
        yield world
    except BaseException:
        if world.size == 1 and dist.is_initialized():
            dist.destroy_process_group()
        raise
    world.barrier()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextmanager
def distributed_if_launched() -> Iterator[World]:
    """The processes that torchrun started, for work that each does apart from the others; one alone joins nothing.

    They wait for the last of them for as long as a week.
    """
    device = local_device()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(0, 1, device)
        return
    with _waiting_is_said():
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    yield World(dist.get_rank(), dist.get_world_size(), device)
    dist.barrier()
    dist.destroy_process_group()


def _join(timeout: timedelta) -> World:
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    device = local_device()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    deepspeed = import_deepspeed()
    if os.environ["WORLD_SIZE"] == "1":
        _join_alone("nccl" if cuda else "gloo", timeout)
    with _waiting_is_said():
        deepspeed.init_distributed(
            "nccl" if cuda else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timeout,
            init_method="env://",
        )
    size = dist.get_world_size()
    control = dist.new_group(backend="gloo", timeout=timeout) if size > 1 else None
    assert control is None or isinstance(control, dist.ProcessGroup)
    return World(dist.get_rank(), size, device, control)


@contextmanager
def _waiting_is_said() -> Iterator[None]:
    """Says what is waited for where the other processes have not come after ``_JOIN_SECONDS``."""
    variables = os.environ
    logger = logging.getLogger("earsight")
    what = (
        "rank %s still waits for the other processes of %s at %s:%s; is each of them running, with the same "
        "MASTER_ADDR, MASTER_PORT and WORLD_SIZE?"
    )
    named = [variables[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    timer = threading.Timer(_JOIN_SECONDS, logger.error, (what, *named))  # an error: every rank is to say it
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _join_alone(backend: str, timeout: timedelta) -> None:
    """A process group of one, for which nothing listens but on the machine's own loopback."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def import_deepspeed() -> Any:
    """DeepSpeed, set up to be quiet and, on a CPU, to need no compiler.

    Its accelerator is chosen when it is first imported, so nothing else of Earsight imports it at the top of a module.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops

    if not torch.cuda.is_available():
        # Its shared-memory collectives are compiled for half a minute at the first use; gloo serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


class _Company:
    """Whether the other processes take part in what this one computes; of all its threads."""

    alone = False


@contextmanager
def alone() -> Iterator[None]:
    """What is computed in the block is this process's own: rows are not gathered."""
    _Company.alone = True
    try:
        yield
    finally:
        _Company.alone = False


def gather_rows(rows: Tensor) -> Tensor:
    """Joins every rank's rows, keeping the gradient to each rank's own.

    Args:
        rows: (b, ...) of this rank, the same shape on every rank.

    Returns:
        (b · world size, ...) in rank order. Under data parallelism that averages gradients over the ranks, a loss on
        local rows against these columns has exactly the gradient of one process with the joint batch.
    """
    if _Company.alone or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    everyone = _GatherRows.apply(rows)
    assert isinstance(everyone, Tensor)
    return everyone


class _GatherRows(torch.autograd.Function):
    """One collective each way: gathers rows, and gives each rank the sum of what all ranks say of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyone = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(everyone, rows.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # torch's stub takes any number
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        # Contiguous: gradients are exchanged as they lie in memory.
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def rank() -> int:
    """This process's rank, 0 where there is no process group or it computes `alone`."""
    return dist.get_rank() if dist.is_initialized() and not _Company.alone else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
