"""Which device a process computes on; a GPU that can't be used is an error, not a slow run on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

#: The oldest driver that a major version of CUDA runs on (NVIDIA's CUDA compatibility, minor version compatibility).
_DRIVERS = {"11": "450.80", "12": "525.60", "13": "580"}


def local_device(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> torch.device:
    """The GPU numbered ``LOCAL_RANK``, or the CPU where no GPU is meant.

    Args:
        environment: This process's variables.
        devices: Where the driver's device files are.

    Raises:
        ValueError: There is a GPU, or the launcher or SLURM gave one, and PyTorch can use none, or too few of them.
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
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return torch.device("cpu")
    for name in ("EARSIGHT_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"):
        given = environment.get(name, "0")
        if given.isdigit() and int(given):
            raise ValueError(
                f"{name}={given}: this node's processes are to have a GPU each, {_why_unusable()}. To compute on CPUs, "
                "launch with gpus_per_node=0"
            )
    if any(devices.glob("nvidia[0-9]*")):
        raise ValueError(f"there is a GPU, {_why_unusable()}")
    return torch.device("cpu")


def compute_deterministically() -> None:
    """Makes torch add in an order that is always the same from here on; before anything is computed.

    Attention stays fused, with the deterministic form of its backward pass; cuDNN's has none, and torch leaves it out.
    An operation that has no deterministic form is an error that names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(True)
    # For debugging alone: a launch for each buffer. The module makes the attribute a property at run time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False


def _why_unusable() -> str:
    """That PyTorch can't use a GPU here, and what to do; goes on a sentence."""
    cuda = torch.version.cuda
    if cuda is None:
        needs = "is built for CPUs only: install a build for CUDA"
    else:
        driver = _DRIVERS.get(cuda.partition(".")[0])
        newer = f"needs NVIDIA driver {driver} or newer" if driver else "needs a driver that knows it"
        needs = (
            f"is built for CUDA {cuda} and {newer}: compare what nvidia-smi shows, and install that driver or a build "
            "of PyTorch for an older CUDA"
        )
    return (
        f"and PyTorch {torch.__version__} can't use it. It {needs}. To compute on the CPU all the same, set "
        "CUDA_VISIBLE_DEVICES= (empty)"
    )
