"""``python -m launch.preflight [options] -- main_pretrain.py --config … key=value``: check a run first.

The work is done by ``engine.preflight``, in a process of its own: the launcher imports nothing of the
training code.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from home_paths import command_line
from launch.snapshot import ROOT
from terminal import show_control_characters


def run_preflight(
    script: str, arguments: Sequence[str], nodes: int, processes: int, options: Sequence[str] = ()
) -> int:
    """Checks one run and prints the report.

    Args:
        script: Name of the training script.
        arguments: Its arguments.
        nodes: Number of nodes.
        processes: Workers on each.
        options: Further options of ``engine.preflight``.

    Returns:
        0 if the run may be submitted, 1 if something is wrong with it, 2 for a config that does not parse.
    """
    command = [
        sys.executable,
        "-c",
        _RUN.format(root=str(ROOT)),
        f"--nodes={nodes}",
        f"--processes={processes}",
    ]
    return subprocess.run([*command, *options, "--", script, *arguments]).returncode


#: Like ``-m engine.preflight``, from whatever folder the relative paths in the config belong to.
_RUN = "import sys; sys.path[0] = {root!r}; from engine.preflight.checks import main; sys.exit(main())"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the checks and returns their exit status."""
    show_control_characters()
    given = command_line(arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog="python -m launch.preflight", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes")
    parser.add_argument("--processes", type=int, default=1, help="workers (GPUs) on each node")
    own, others = parser.parse_known_args(given[:cut])
    if not given[cut + 1 :]:
        parser.error("after '--' comes the training script with its arguments")
    script, *rest = given[cut + 1 :]
    return run_preflight(script, rest, own.nodes, own.processes, others)


if __name__ == "__main__":
    sys.exit(main())
