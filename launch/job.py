"""The job that runs on every node: torchrun, watched, restarted, and requeued when time is up.

Each node of the job runs one `TrainingJob`. It starts torchrun with one worker a GPU and waits. What ends the
wait:

- the workers finish: so does the job;
- a signal (time limit, preemption, someone's SIGUSR1): the workers are asked to stop, save a checkpoint and
  exit; node 0 requeues the job, which goes on from there;
- a worker fails: the other nodes' workers are ended, and up to ``max_restarts`` times all nodes start again
  from the newest checkpoint, with a fresh port and rendezvous id;
- a node is heard of no more: the job is requeued, if SLURM has not done so by then.

A job that comes back from the queue no further than last time stops with an error.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission

from launch.attempt import Attempt, Decision
from launch.files import append_line
from launch.progress import RunStatus, newest_checkpoint, progress, read_status
from launch.signals import Signals
from launch.torchrun import Torchrun, torchrun_command, worker_environment

#: Seconds after which the workers are asked to stop again: the first time may have come before they could
#: hear.
ASK_AGAIN = 10.0

#: Seconds kept back from the warning time for ending workers that did not stop and for requeueing.
MARGIN = 15.0

#: Seconds that workers get to end by themselves after another node failed, and then after torchrun's SIGTERM.
GRACE, MERCY = 5.0, 40.0

#: Seconds between looks at the process table and the other nodes' reports.
LOOK = 2.0


class TrainingFailedError(RuntimeError):
    """The training ended with an error, or gets nowhere."""


@dataclass(frozen=True)
class TrainingJob:
    """One run's job, callable on each of its nodes (picklable: submitit carries it there).

    Attributes:
        command: The training script and its arguments.
        output_dir: The run's folder, on a file system that all nodes see.
        folder: Where the training runs, so that relative paths mean what they meant at submission.
        processes: Workers on each node.
        cpus_per_process: Cores of each worker; None divides what there is.
        interface: Network interface for NCCL and gloo.
        numa_binding: Which cores near its GPU a worker is bound to, in torchrun's words; None binds none.
        environment: Variables for the workers.
        max_restarts: Failures after which training starts again, in one stay on the cluster.
        max_requeues: How often the job may go back to the queue.
        warning_seconds: How long before the time limit the warning comes; workers must stop and save within
            it.
        rendezvous_seconds: How long the nodes wait for each other.
        torchrun: What stands for torchrun itself.
        requeues: How often the job went back to the queue.
        last_progress: How far the run was when it did (`launch.progress.progress`); None before the first time.
    """

    command: tuple[str, ...]
    output_dir: Path
    folder: Path
    processes: int
    cpus_per_process: int | None = None
    interface: str | None = None
    numa_binding: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    max_restarts: int = 3
    max_requeues: int = 100
    warning_seconds: float = 120.0
    rendezvous_seconds: float = 600.0
    torchrun: tuple[str, ...] | None = None
    requeues: int = 0
    last_progress: tuple[int, int] | None = None

    def __call__(self) -> str:
        """Trains until the run is finished, and returns what node 0 says at the end.

        Raises:
            TrainingFailedError: The run failed more often than it may, or makes no progress.
            SystemExit: The job is handed back to the queue, or the cluster ends it.
        """
        with Signals().listening() as signals:
            for index in range(self.max_restarts + 1):
                attempt = self._open(index)
                decision = self._attempt(attempt, signals, restarts_left=self.max_restarts - index)
                if decision.action != "restart":
                    return self._end(attempt, decision, signals)
        raise AssertionError("the last attempt may not decide to restart")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit requeues: this job, one requeue later.

        Runs on node 0's launcher alone, when the workers have ended: there is nothing to save and nobody to
        talk to.

        Raises:
            TrainingFailedError: The limit of requeues is reached, or nothing was gained since the last one.
        """
        reached = progress(self.output_dir)
        step = newest_checkpoint(self.output_dir)
        if self.requeues >= self.max_requeues:
            raise TrainingFailedError(
                f"requeued {self.requeues} times, which is max_requeues: submit the same command again to "
                f"go on from step {step}"
            )
        if self.last_progress is not None and reached <= self.last_progress:
            at = f", and the evaluation at part {reached[1]}" if reached[1] else ""
            raise TrainingFailedError(
                f"no progress since the last requeue: the newest checkpoint in {self.output_dir} was and is "
                f"of step {step}{at}. Do a step and a checkpoint take longer than a stay on the cluster, or than "
                f"warning_seconds={self.warning_seconds:.0f}?"
            )
        return DelayedSubmission(replace(self, requeues=self.requeues + 1, last_progress=reached))

    def _open(self, index: int) -> Attempt:
        """The folder in which this attempt's nodes find each other. Its name is never used again."""
        node = JobEnvironment() if "SUBMITIT_EXECUTOR" in os.environ else None
        job = node.job_id if node else f"pid{os.getpid()}-{time.time_ns()}"
        stay = f"{os.environ.get('SLURM_RESTART_COUNT', '0')}-{self.requeues}"
        number, count = (node.node, node.num_nodes) if node else (0, 1)
        folder = self.output_dir / "launch" / "attempts" / f"{job}-{stay}-{index}"
        return Attempt(folder, number, count, self.rendezvous_seconds)

    def _attempt(self, attempt: Attempt, signals: Signals, restarts_left: int) -> Decision:
        before = self._status(attempt)
        started = time.time()
        self._log(attempt, f"starting {self.processes} workers on node {attempt.node} of {attempt.nodes}")
        attempt.report(self._run(attempt, signals))
        if not attempt.is_leader:
            return attempt.decision()
        decision = self._decide(attempt, signals, before, restarts_left)
        self._record(attempt, decision, started)
        attempt.announce(decision)
        return decision

    def _status(self, attempt: Attempt) -> RunStatus | None:
        """The run's own word; one that is damaged is none."""
        try:
            return read_status(self.output_dir)
        except ValueError as error:
            self._log(attempt, str(error))
            return None

    def _run(self, attempt: Attempt, signals: Signals) -> int:
        """Runs torchrun to its end on this node and returns its exit status."""
        start = torchrun_command(
            attempt.rendezvous(),
            attempt.node,
            attempt.nodes,
            self.processes,
            self.numa_binding,
            self.torchrun,
        )
        environment = worker_environment(
            self.processes, self.cpus_per_process, self.interface, self.environment
        )
        child = Torchrun.start([*start, *self.command], environment, self.folder)
        try:
            return self._wait(child, attempt, signals)
        finally:
            child.kill()

    def _wait(self, child: Torchrun, attempt: Attempt, signals: Signals) -> int:
        """Waits for torchrun, passing on what this node's launcher hears and sees of the other nodes."""
        ask_at = terminate_at = kill_at = float("inf")
        look_at = 0.0
        while (code := child.exit_code()) is None:
            now = time.monotonic()
            if signals.stop and ask_at == float("inf"):
                ask_at, patience = now, max(self.warning_seconds - MARGIN, self.warning_seconds / 2)
                kill_at = min(kill_at, now + patience)
                self._log(attempt, f"signalled: asking the workers to save and stop within {patience:.0f} s")
            if now >= ask_at:
                ask_at = now + (ASK_AGAIN if child.ask_to_stop() else 1.0)
            if now >= look_at:
                look_at = now + LOOK
                child.watch()
                if terminate_at == float("inf") and (report := attempt.failed_elsewhere()):
                    terminate_at, kill_at = now + GRACE, min(kill_at, now + GRACE + MERCY)
                    self._log(attempt, f"node {report.node} ({report.host}) ended with {report.exit_code}")
            if now >= terminate_at:
                terminate_at = kill_at
                child.terminate()
            if now >= kill_at:
                self._log(attempt, "the workers did not end in time: killing them")
                child.kill()
            time.sleep(0.2)
        return code

    def _decide(
        self, attempt: Attempt, signals: Signals, before: RunStatus | None, restarts_left: int
    ) -> Decision:
        """Node 0's reading of how the attempt ended."""
        reports = attempt.all_reports()
        status = self._status(attempt)
        fresh = status is not None and (before is None or status.stamp != before.stamp)
        state = status.state if status is not None and fresh else ""
        where = f"newest complete checkpoint: step {newest_checkpoint(self.output_dir)}"
        failures = [f"{r.host} (node {r.node}) exit {r.exit_code}" for r in reports if r.exit_code]
        vanished = attempt.nodes - len(reports)
        failures += [f"{vanished} of {attempt.nodes} nodes vanished"] * (vanished > 0)
        if not failures:
            return Decision("finish", "finished")
        if state == "finished":
            return Decision("finish", f"finished, though torchrun then ended badly: {', '.join(failures)}")
        if signals.terminated and not signals.warned:
            return Decision("end", f"ended by the cluster; {where}")
        if state == "stopped":
            return Decision("requeue", f"stopped on request; {where}")
        if signals.warned:
            return Decision("requeue", f"out of time before the workers had saved; {where}")
        said = f" ({status.message})" if status is not None and state == "failed" else ""
        failed = f"failed: {', '.join(failures)}{said}; {where}"
        if vanished:  # this allocation cannot train any more; the queue gives another
            return Decision("requeue", failed)
        if restarts_left:
            return Decision("restart", f"{failed}; starting again, {restarts_left} restarts left")
        return Decision("fail", f"{failed}; max_restarts={self.max_restarts} used up")

    def _end(self, attempt: Attempt, decision: Decision, signals: Signals) -> str:
        self._log(attempt, decision.message)
        if decision.action == "fail":
            raise TrainingFailedError(f"{decision.message}. The log above says why")
        if decision.action == "end":
            raise SystemExit(128 + 15)
        if decision.action == "requeue" and attempt.is_leader:
            self._run_again(attempt, signals)
        if decision.action == "requeue":
            self._await_requeue(signals)
        return decision.message

    def _await_requeue(self, signals: Signals) -> NoReturn:
        """On the other nodes: leaving before the job is requeued could make the cluster end it as failed."""
        until = time.monotonic() + self.rendezvous_seconds
        while not signals.terminated and time.monotonic() < until:
            time.sleep(0.2)
        raise SystemExit(0)

    def _run_again(self, attempt: Attempt, signals: Signals) -> NoReturn:
        try:
            self.checkpoint()
        except TrainingFailedError as error:
            self._record(attempt, Decision("fail", str(error)), time.time())
            raise
        signals.run_again()

    def _record(self, attempt: Attempt, decision: Decision, started: float) -> None:
        """Adds a line to the run's history, whose last line is what ``launch.status`` shows."""
        line = {
            "attempt": attempt.folder.name,
            "started": round(started, 1),
            "ended": round(time.time(), 1),
            "action": decision.action,
            "checkpoint": newest_checkpoint(self.output_dir),
            "message": decision.message,
        }
        append_line(self.output_dir / "launch" / "history.jsonl", line)

    def _log(self, attempt: Attempt, message: str) -> None:
        clock = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"[launch {clock} node {attempt.node}] {message}", flush=True)
