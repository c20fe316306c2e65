"""A program of which one rank fails by a fault of ours while the others wait for it."""

import sys
from pathlib import Path

from engine.cli import run_program
from engine.config import PretrainConfig
from engine.parallel.world import World


def main(config: PretrainConfig, config_yaml: str, world: World) -> bool:
    if world.rank == 1:
        raise RuntimeError("a fault of ours")
    world.barrier()
    return True


if __name__ == "__main__":
    sys.exit(run_program(str(Path(__file__).name), PretrainConfig, main))
