"""What a launch file says: where to run, on how much, for how long, and what to do when it ends early."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

from home_paths import expand_values
from strict_yaml import ConfigParser, use_strict_yaml

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def refuse_control(key: str, value: str) -> None:
    """Raises a ``ValueError`` for a value with a line break or another control character.

    A line break in a value would become a line of its own in the sbatch script, which a shell runs.
    """
    if _CONTROL.search(value):
        raise ValueError(f"{key}: {value!r} holds a line break or another control character")


def _texts(value: object) -> Iterator[str]:
    """All text in a setting."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


@dataclass(frozen=True)
class LaunchConfig:
    """Settings of the launcher. Fields left at None are left to the cluster.

    Attributes:
        name: Job name, and name of the run: without an ``output_dir`` of its own it goes to ``runs/NAME``.
        cluster: ``slurm``; ``local``, in the background of this machine; ``debug``, here and now.
        nodes: Number of nodes.
        gpus_per_node: GPUs, and so worker processes, on each node; 0 computes on CPUs.
        processes_per_node: Worker processes on each node where there are no GPUs.
        cpus_per_process: Cores of each worker, its loader processes included.
        memory_gb: Memory of each node.
        minutes: Time limit of one job. A longer run is requeued and resumes.
        warning_seconds: How long before the limit the warning comes. A step and a checkpoint must fit in.
        max_requeues: How often the job may be requeued (``local`` stops after 5 whatever this says).
        max_restarts: Failures of a worker or node after which a job restarts from its newest checkpoint,
            within one allocation.
        partition: SLURM partition.
        account: Account to charge.
        qos: Quality of service.
        constraint: Required node features.
        comment: Job comment; some clusters want one.
        exclude: Nodes not to use.
        sbatch: Further sbatch parameters, such as ``{reservation: winter, mail-type: END}``; ``true`` for a
            flag.
        srun_args: Further arguments of srun.
        setup: Lines of bash run on the first node before anything else: ``module load …``, ``source
            …/activate``.
        python: What runs Python on the nodes, such as ``singularity exec --nv image.sif python``; by default
            the Python that submits.
        environment: Variables for the training processes.
        interface: Network interface for NCCL and gloo, such as ``ib0``.
        numa_binding: Binds each worker and its readers to the cores near its GPU: ``node`` to those of the GPU's NUMA
            node, others as of torchrun's option of that name.
        rendezvous_seconds: How long the nodes of a job wait for each other.
        snapshot: Run a copy of the code, so that editing the tree does not change a job that waits.
        preflight: Check the training config, the data and the sizes before submitting.
        gpu_memory_gb: Memory of a GPU, for the preflight.
        gpu_tflops: Peak of a GPU in 10¹² FLOP/s (312: A100 in bf16), for the preflight's estimate of the time.
        mfu: Share of that peak that the training reaches, for the same.
        seeds: One run for each seed, in an array.
        sweep: One run for each entry, a string of overrides such as ``optimizer.lr=1e-4
            model.mask.audio_ratio=0.8``; with ``seeds``, for each pair.
        array_parallelism: How many runs of an array may run at once.
    """

    name: str = "earsight"
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    nodes: int = 1
    gpus_per_node: int = 8
    processes_per_node: int | None = None
    cpus_per_process: int | None = None
    memory_gb: float | None = None
    minutes: int = 1440
    warning_seconds: int = 120
    max_requeues: int = 100
    max_restarts: int = 3
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    comment: str | None = None
    exclude: str | None = None
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    srun_args: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    python: str | None = None
    environment: dict[str, str | int | float] = field(default_factory=dict)
    interface: str | None = None
    numa_binding: Literal["node", "socket", "exclusive", "core-complex"] | None = None
    rendezvous_seconds: int = 600
    snapshot: bool = True
    preflight: bool = True
    gpu_memory_gb: float = 80.0
    gpu_tflops: float = 312.0
    mfu: float = 0.3
    seeds: list[int] = field(default_factory=list)
    sweep: list[str] = field(default_factory=list)
    array_parallelism: int = 256

    def __post_init__(self) -> None:
        for item in fields(self):
            for value in _texts(getattr(self, item.name)):
                refuse_control(item.name, value)
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name: {self.name!r} should be letters, digits, '.', '_' and '-': it names a folder"
            )
        at_least_one = ("nodes", "processes_per_node", "cpus_per_process", "minutes", "array_parallelism")
        for key in (*at_least_one, "warning_seconds", "rendezvous_seconds"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: {value} should be at least 1")
        for key in ("gpus_per_node", "max_requeues", "max_restarts"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: {getattr(self, key)} should not be negative")
        for key in ("memory_gb", "gpu_memory_gb", "gpu_tflops", "mfu"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"{key}: {value} should be above 0")
        if self.warning_seconds >= 60 * self.minutes:
            raise ValueError(
                f"warning_seconds: {self.warning_seconds} leaves no time to train of minutes={self.minutes}"
            )
        self._check_together()

    def _check_together(self) -> None:
        if self.cluster != "slurm" and self.nodes > 1:
            raise ValueError(
                f"nodes: {self.nodes} on cluster={self.cluster}: that is one machine, use nodes=1"
            )
        if self.gpus_per_node and self.processes_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"processes_per_node: {self.processes_per_node} with gpus_per_node={self.gpus_per_node}: a "
                "worker has one GPU, so leave processes_per_node out"
            )
        if self.numa_binding and not self.gpus_per_node:
            raise ValueError(
                f"numa_binding: {self.numa_binding} with gpus_per_node=0: workers are bound to the cores near their "
                "GPU, so leave it out on CPUs"
            )
        if self.cluster == "debug" and (self.setup or self.python):
            raise ValueError(
                "setup, python: cluster=debug runs in the Python that you start; use cluster=local or leave them out"
            )
        if self.cluster == "local" and len(self.seeds) + len(self.sweep) > 1:
            raise ValueError(
                "seeds, sweep: cluster=local would run all of them at once on this machine; use "
                "cluster=debug (one after another) or slurm (an array)"
            )

    @property
    def processes(self) -> int:
        """Worker processes on each node."""
        return self.gpus_per_node or self.processes_per_node or 1


def launch_parser() -> ConfigParser:
    """A parser for launch settings: ``--config FILE`` and one flag a field; refuses unknown keys by name."""
    use_strict_yaml()
    parser = ConfigParser(
        prog="python -m launch.submit", description="Submit training runs.", allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="launch file (YAML)")
    parser.add_class_arguments(LaunchConfig)
    return parser


def launch_config(namespace: object) -> LaunchConfig:
    """The settings in what `launch_parser` parsed.

    Raises:
        ValueError: A value that makes no sense, alone or with the others, named by its key.
    """
    values = {f.name: getattr(namespace, f.name) for f in fields(LaunchConfig)}
    # A shell replaces what `setup` says of home folders, on the node that runs it.
    return LaunchConfig(
        **{key: value if key == "setup" else expand_values(value) for key, value in values.items()}
    )
