"""What the nodes of one attempt tell each other, as small files in a folder that all of them see.

Torchrun's rendezvous joins the workers; this joins the launchers around them, which must know where that
rendezvous is, that another node has failed, and what happens next. Node 0 alone decides. Files serve because
a job's folder is shared anyway, and because they outlive every process and tell afterwards what happened.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch.files import read_json, write_json

Action = Literal["finish", "requeue", "end", "restart", "fail"]


@dataclass(frozen=True)
class Rendezvous:
    """Where the torchruns of one attempt meet.

    Attributes:
        endpoint: ``host:port`` of node 0.
        id: Unlike that of any other attempt, so that a straggler of an earlier one is not let in.
    """

    endpoint: str
    id: str


@dataclass(frozen=True)
class Report:
    """How torchrun ended on one node.

    Attributes:
        node: The node's number.
        host: Its host name.
        exit_code: Of torchrun; negative for a signal.
    """

    node: int
    host: str
    exit_code: int


@dataclass(frozen=True)
class Decision:
    """What node 0 makes of the reports.

    Attributes:
        action: ``finish`` (done), ``requeue`` (saved; run the job again), ``end`` (the cluster is ending the
            job), ``restart`` (next attempt at once), ``fail``.
        message: Why, for people.
    """

    action: Action
    message: str


class Attempt:
    """One attempt's folder, as seen from one node.

    Args:
        folder: Its folder, the same on all nodes and fresh for each attempt.
        node: This node's number.
        nodes: How many there are.
        patience: Seconds to wait for the others.
    """

    def __init__(self, folder: Path, node: int, nodes: int, patience: float) -> None:
        self.folder = folder
        self.node = node
        self.nodes = nodes
        self.patience = patience
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_leader(self) -> bool:
        """Whether this node hosts the rendezvous and decides."""
        return self.node == 0

    def rendezvous(self) -> Rendezvous:
        """The attempt's meeting place: node 0 chooses a free port and says so, the others read it."""
        path = self.folder / "rendezvous.json"
        if not self.is_leader:
            return Rendezvous(**self._wait_for(path, "node 0 to open the rendezvous"))
        host = socket.gethostname() if self.nodes > 1 else "127.0.0.1"
        value = Rendezvous(f"{host}:{_free_port()}", uuid.uuid4().hex)
        write_json(path, asdict(value))
        return value

    def report(self, exit_code: int) -> None:
        """Tells the others how torchrun ended here."""
        value = Report(self.node, socket.gethostname(), exit_code)
        write_json(self.folder / f"node-{self.node:04d}.json", asdict(value))

    def reports(self) -> list[Report]:
        """What has been reported so far, by node."""
        values = (read_json(path) for path in sorted(self.folder.glob("node-*.json")))
        return [Report(**value) for value in values if value is not None]

    def failed_elsewhere(self) -> Report | None:
        """Another node's report of a failure, if there is one."""
        return next((r for r in self.reports() if r.node != self.node and r.exit_code != 0), None)

    def all_reports(self) -> list[Report]:
        """Waits for every node's report; a node that has vanished is missing from them."""
        _wait(lambda: len(self.reports()) == self.nodes, self.patience)
        return self.reports()

    def announce(self, decision: Decision) -> None:
        """Node 0 tells the others what happens next."""
        write_json(self.folder / "decision.json", asdict(decision))

    def decision(self) -> Decision:
        """Waits for node 0's decision."""
        return Decision(**self._wait_for(self.folder / "decision.json", "node 0 to decide what comes next"))

    def _wait_for(self, path: Path, what: str) -> dict[str, Any]:
        if not _wait(path.exists, self.patience):
            raise TimeoutError(f"node {self.node} waited {self.patience:.0f} s for {what} ({path})")
        value = read_json(path)
        assert value is not None
        return value


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
