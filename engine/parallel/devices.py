"""Which device a process computes on; a GPU that can't be used is an error, not a slow run on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch


def local_device(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> torch.device:
    """The GPU numbered ``LOCAL_RANK``, or the CPU where no GPU is meant.

    Args:
        environment: This process's variables.
        devices: Where the driver's device files are.

    Raises:
        ValueError: There is a GPU, or SLURM gave one, and PyTorch can use none, or too few of them.
    """
    number = int(environment.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if number >= count:
            raise ValueError(
                f"this is process {number} of this node (from 0), and PyTorch sees {count} GPU{'s' * (count > 1)}: "
                f"start {count} a node (torchrun --nproc_per_node {count}, or gpus_per_node of the launch settings)"
            )
        return torch.device("cuda", number)
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    given = environment.get("SLURM_GPUS_ON_NODE", "0")
    if not hidden and (any(devices.glob("nvidia[0-9]*")) or (given.isdigit() and int(given))):
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs only"
        raise ValueError(
            f"there is a GPU, and PyTorch {torch.__version__} can't use it: it {built}. Compare the CUDA version that "
            "nvidia-smi shows, the newest that the driver knows, and install a newer driver or another build of "
            "PyTorch. To compute on the CPU all the same, set CUDA_VISIBLE_DEVICES="
        )
    return torch.device("cpu")
