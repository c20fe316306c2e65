"""``torch.save`` files of others, of which nothing but tensors and plain values is ever made.

Such files are pickles. torch's restricted unpickler calls nothing but what rebuilds tensors, and stops at
every other name. Many published files hold some of those beside the weights: the training's arguments, a
score, DeepSpeed's bookkeeping. For the names below it is given an empty stand-in, so that such a file can be
read while not even these harmless classes are imported or called; any other name refuses the file.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch._weights_only_unpickler import UnpicklingError

from models.weights.errors import UnsafeFileError, WeightsError

#: What files of weights hold beside tensors, and that is read as nothing at all.
_INERT = (
    "argparse.Namespace",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"pathlib.{module}{system}Path" for module in ("", "_local.") for system in ("Posix", "Windows")),
)


class _StandIn:
    """In the place of an object of one of the inert kinds: takes whatever it is made of and keeps nothing."""

    def __new__(cls, *_: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def load_tensors(path: Path, *, lazy: bool = False) -> Any:
    """What a ``torch.save`` file holds, on the CPU.

    Args:
        path: The file.
        lazy: Read tensors from disk only where they are used; for large files of which little is wanted.

    Raises:
        UnsafeFileError: It holds more than tensors, plain values and what is known to be harmless; nothing in
            it was run.
        WeightsError: It is damaged, or no such file.
    """
    try:
        refuse_unfolding(path)
        with (
            warnings.catch_warnings(
                action="ignore", category=UserWarning
            ),  # of pickles that torch did not write
            torch.serialization.safe_globals([(_StandIn, name) for name in _INERT]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except WeightsError:
        raise
    except UnpicklingError as error:
        raise refusal(path, str(error)) from error
    except (
        RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError,
        AssertionError,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} can't be read as a torch.save file: {reason}") from error


def refuse_unfolding(path: Path) -> None:
    """Torch stores what it saves as it is, once; what is compressed, or lies in a file twice, may unfold to any size.

    Raises:
        WeightsError: It is such an archive.
        BadZipFile: It is damaged.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise WeightsError(f"{path} is a compressed archive, which torch.save does not write")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise WeightsError(f"{path} is an archive whose parts overlap, which torch.save does not write")


def refusal(path: Path, message: str) -> WeightsError:
    """What to say of a file that torch's restricted unpickler gave up with ``message``."""
    found = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"class ([\w.]+)", message)
    if found is None and "unsupported operand" not in message.lower():
        return WeightsError(f"{path} is not a file of tensors that torch.save or safetensors wrote")
    what = found.group(1) if found else "instructions"
    return UnsafeFileError(
        f"{path} is refused: beside tensors it holds {what}, and to read that would run code. Nothing of "
        f"it was run. Ask whoever made it for a safetensors file, or for the bare state dict"
    )
