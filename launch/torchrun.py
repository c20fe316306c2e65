"""torchrun on one node, as a child process that can be asked to stop and never outlives its launcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launch.attempt import Rendezvous

#: What must not reach the workers: another launcher's word on ranks, and the cluster's own variables.
_FOREIGN = (
    "SLURM_",
    "SUBMITIT_",
    "SRUN_",
    "PMI_",
    "TORCHELASTIC_",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_",
)

_PR_SET_PDEATHSIG = 1

#: Tells workers how many GPUs their node is to have: one that can't use them ends (`engine.parallel.devices`).
GPUS = "EARSIGHT_GPUS_PER_NODE"


def torchrun_command(
    rendezvous: Rendezvous,
    node: int,
    nodes: int,
    processes: int,
    numa_binding: str | None = None,
    program: Sequence[str] | None = None,
) -> list[str]:
    """Torchrun's command line for one node, up to where the training script's name goes.

    Args:
        rendezvous: Where the nodes meet.
        node: This node's number; node 0 hosts the rendezvous.
        nodes: Number of nodes.
        processes: Workers on each node.
        numa_binding: Which cores near its GPU a worker is bound to; None binds none.
        program: What stands for torchrun itself.
    """
    return [
        *(program or (sys.executable, "-m", "torch.distributed.run")),
        f"--nnodes={nodes}",
        f"--nproc_per_node={processes}",
        f"--node_rank={node}",
        "--max_restarts=0",  # a restart is a new attempt of the launcher, with a rendezvous of its own
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={rendezvous.endpoint}",
        f"--rdzv_id={rendezvous.id}",
        f"--rdzv_conf=is_host={'true' if node == 0 else 'false'}",
        *([f"--numa_binding={numa_binding}"] if numa_binding else []),
    ]


def worker_environment(
    processes: int,
    cpus_per_process: int | None = None,
    interface: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment in which torchrun and its workers run.

    Threads are counted from the cores at hand: PyTorch's own default, all cores for each process, makes
    processes that share a node many times slower.

    Args:
        processes: Workers on this node.
        cpus_per_process: Cores of each; None divides those this process may use.
        interface: Network interface for NCCL and gloo, such as ``ib0``.
        extra: Settings of the user, which come last.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    threads = cpus_per_process or max(1, len(os.sched_getaffinity(0)) // processes)
    environment["OMP_NUM_THREADS"] = str(threads)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment["PYTHONUNBUFFERED"] = "1"
    if interface is not None:
        environment["NCCL_SOCKET_IFNAME"] = environment["GLOO_SOCKET_IFNAME"] = interface
    return environment | dict(extra or {})


@dataclass
class Torchrun:
    """A running torchrun and the workers below it.

    Attributes:
        process: The agent, torchrun itself.
    """

    process: subprocess.Popen[bytes]
    _family: dict[int, int] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        output: IO[str] | None = None,
    ) -> Torchrun:
        """Starts ``command`` in ``folder``; what it says goes to ``output``, or where this process's goes."""
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdout=output,
            stderr=output,
            preexec_fn=_shield,
        )
        return cls(process)

    def exit_code(self) -> int | None:
        """Torchrun's exit status, or None while it runs."""
        return self.process.poll()

    def workers(self) -> list[int]:
        """Process ids of the training processes, in rank order as long as numbers do not wrap around."""
        return sorted(pid for pid, parent in _parents().items() if parent == self.process.pid)

    def watch(self) -> None:
        """Notes which processes belong to the training, to find them when their parent is gone."""
        self._family |= _descendants(self.process.pid)

    def ask_to_stop(self) -> int:
        """Sends SIGUSR1 to the workers and returns their number.

        To them alone: it would end the agent, and the loader processes below the workers.
        """
        workers = self.workers()
        for pid in workers:
            _send(pid, signal.SIGUSR1)
        return len(workers)

    def terminate(self) -> None:
        """Lets torchrun end its workers: SIGTERM, and after its 30 s SIGKILL."""
        _send(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends at once whatever of the training is alive, also what torchrun left behind."""
        self.watch()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid, started in self._family.items():
            if process_start(pid) == started:  # a number may by now be another process's
                _send(pid, signal.SIGKILL)


def _shield() -> None:
    """Runs in the child before torchrun: what the launcher hears must not end the agent.

    Some clusters signal every process of a job. The warning signals' default is death, and ignoring is
    inherited: the workers too are safe until they install handlers of their own. And the agent ends with its
    launcher, however that ends.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself in between
        os.kill(pid, number)


def _parents() -> dict[int, int]:
    """Each process's parent."""
    stats = ((int(entry), _stat(int(entry))) for entry in os.listdir("/proc") if entry.isdigit())
    return {pid: int(stat[1]) for pid, stat in stats if stat}


def _descendants(ancestor: int) -> dict[int, int]:
    """Processes below ``ancestor``, with the time each was started."""
    parents, found = _parents(), {ancestor}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    times = {pid: process_start(pid) for pid in found - {ancestor}}
    return {pid: started for pid, started in times.items() if started is not None}


def process_start(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None for one that is gone."""
    stat = _stat(pid)
    return int(stat[19]) if stat and stat[0] != "Z" else None


def command_of(pid: int) -> list[str]:
    """A process's command line; empty for one that is gone."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in content.split(b"\0")[:-1]]


def _stat(pid: int) -> list[str]:
    """``/proc/PID/stat`` from the third field on (state, parent, …); empty for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()  # the name, in parentheses, may hold anything
