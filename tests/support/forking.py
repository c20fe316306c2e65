"""Programs in real processes that begin with what takes six seconds to import already imported.

A server imports it once for each process of the test run, and forks. What a program does from its first line on is
what it does in a fresh process; that fresh processes do it too is seen by the tests of the launcher and of torchrun.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PRELOAD = (
    "engine.cli",
    "engine.config",
    "engine.tasks.pretrain",
    "engine.tasks.finetune",
    # DeepSpeed imports it, and so torch's compiler, with its first optimizer: 2 s of a core.
    "deepspeed.runtime.zero.muon.muon_optimizer",
)

_control: socket.socket | None = None


def run_programs(
    commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], timeout: float = 240
) -> list[subprocess.CompletedProcess[str]]:
    """Runs programs at the same time, each named by its file or by ``-m MODULE``, in the repository's root.

    Raises:
        subprocess.TimeoutExpired: One took longer than ``timeout`` seconds; all of them are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = [
            _Forked(command, environment, Path(folder, str(number)))
            for number, (command, environment) in enumerate(zip(commands, environments, strict=True))
        ]
        end = time.monotonic() + timeout
        try:
            return [program.wait(end - time.monotonic()) for program in started]
        finally:
            for program in started:
                program.close()


class _Forked:
    def __init__(self, command: Sequence[str], environment: dict[str, str], output: Path) -> None:
        self.command, self._output, self._code = command, output, None
        self._status, theirs = socket.socketpair()
        request = json.dumps({"command": list(command), "environment": environment}).encode()
        with theirs, open(f"{output}.out", "wb") as out, open(f"{output}.err", "wb") as err:
            socket.send_fds(_server(), [request], [theirs.fileno(), out.fileno(), err.fileno()])
        self._pid = int(self._status.recv(16))

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        self._status.settimeout(max(timeout, 0.1))
        try:
            self._code = int(self._status.recv(16))
        except TimeoutError:
            raise subprocess.TimeoutExpired(self.command, timeout) from None
        out, err = (Path(f"{self._output}.{name}").read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(self.command, self._code, out, err)

    def close(self) -> None:
        """Kills the program if it still runs."""
        if self._code is None:
            os.kill(self._pid, signal.SIGKILL)
        self._status.close()


def _server() -> socket.socket:
    global _control
    if _control is None:
        _control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = os.pathsep.join(map(str, (_ROOT, _ROOT / "tests")))
        process = subprocess.Popen(
            [sys.executable, "-m", "support.forking", str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(_end, _control, process)
    return _control


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.kill()  # a process forked in the meantime may hold the socket too
    process.wait()


def _serve(control: socket.socket) -> None:
    """Forks for each request; returns in the forked program, and when nobody can ask any more."""
    importlib.import_module("engine.parallel.world").import_deepspeed()
    for name in _PRELOAD:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else a collection in a program goes through all that was imported here: seconds of a core
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not request:
            return
        if os.fork() == 0:
            control.close()
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status, out, err = files
    if program := os.fork():  # this process only waits, and says what became of it
        os.write(status, b"%d" % program)
        _, ended = os.waitpid(program, 0)
        os.write(status, b"%d" % os.waitstatus_to_exitcode(ended))
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for file in files:
        os.close(file)
    _run(**json.loads(request))


def _run(command: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(_ROOT)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
