"""Starts workers as torchrun does, and ends the others when one fails; without importing torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def main() -> int:
    flags = [word for word in sys.argv[1:] if word.startswith("--")]
    options = dict(word.removeprefix("--").split("=", 1) for word in flags if "=" in word)
    script = next(i for i, word in enumerate(sys.argv) if i and word.endswith(".py"))
    count, node = int(options["nproc_per_node"]), int(options["node_rank"])
    workers = []
    for local in range(count):
        rank = {"RANK": str(node * count + local), "LOCAL_RANK": str(local)}
        workers.append(subprocess.Popen([sys.executable, *sys.argv[script:]], env=os.environ | rank))
    signal.signal(signal.SIGTERM, lambda *_: [worker.terminate() for worker in workers])
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers):
            time.sleep(0.2)
            for worker in workers:
                worker.terminate()
        time.sleep(0.05)
    return int(any(worker.returncode for worker in workers))


if __name__ == "__main__":
    sys.exit(main())
