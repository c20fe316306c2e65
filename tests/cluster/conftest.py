"""A private SLURM of two virtual nodes for the tests of this folder; skips them where there can be none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.runs import write_run_config

_SCRIPTS = Path(__file__).parent / "slurm"
_PROGRAMS = ("slurmctld", "slurmd", "munged")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables by which SLURM's programs find the private cluster."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        pytest.skip("a private SLURM needs root to start its daemons")
    if missing and shutil.which("apt-get") is None:
        pytest.skip(f"no {', '.join(missing)} here and no apt-get to install them with")
    state = tmp_path_factory.mktemp("slurm")
    up = subprocess.run([_SCRIPTS / "up.sh", state], capture_output=True, text=True)
    if up.returncode != 0 and any(shutil.which(name) is None for name in _PROGRAMS):
        pytest.skip(f"SLURM cannot be installed here: {up.stderr[-500:]}")
    try:
        assert up.returncode == 0, up.stderr
        yield {"SLURM_CONF": str(state / "slurm.conf")}
    finally:
        subprocess.run([_SCRIPTS / "down.sh", state])


@pytest.fixture(scope="session")
def cluster(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A folder to submit from, with a run's config, on the private cluster."""
    folder = tmp_path_factory.mktemp("work")
    write_run_config(folder, steps=160)
    return Cluster(folder, slurm)
