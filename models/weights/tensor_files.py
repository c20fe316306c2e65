"""Named tensors out of files and folders of others, without ever running what is in them.

safetensors files hold nothing but tensors; ``torch.save`` files are read by `models.weights.unpickle`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atomic import replacing_by_name
from models.weights.errors import WeightsError
from models.weights.unpickle import load_tensors
from models.weights.zero import MODEL_STATES, with_float32_weights

T = TypeVar("T")

WEIGHTS_NAME = "model.safetensors"
_CHECKPOINT = re.compile(r"step_\d{8}")
_CHECKPOINT_FILES = (WEIGHTS_NAME, "config.yaml", "state.json")
# Where other programs keep the weights within what they save, beside optimizer, epoch and arguments.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module")
_DEEPEST = 8  # wrappers within wrappers: a pickle may hold itself
# Names of wrapping modules, in front of every key: data parallelism, an objective, torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Attributes:
        path: The file.
        tensors: By name, without prefixes that all of them have.
        metadata: Of a safetensors file.
        left: What else is in it, by name, with why it is no weight.
        precision: The kinds of floating point numbers in it, ``float32`` where all is well.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    precision: str = "float32"


def locate(path: Path) -> Path:
    """The file of weights that a file or folder stands for.

    A run stands for its newest complete checkpoint, a checkpoint or exported folder for its
    ``model.safetensors``, DeepSpeed's folder for its model states.

    Raises:
        WeightsError: There is none, or it is one that can't be read safely.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: there is no such file or folder")
    if (path / "checkpoints").is_dir():
        return newest_checkpoint(path) / WEIGHTS_NAME
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    if path.name == "deepspeed" and (path.parent / WEIGHTS_NAME).is_file():
        return path.parent / WEIGHTS_NAME  # an Earsight checkpoint has the plain weights beside DeepSpeed's
    return _deepspeed_states(path)


def newest_checkpoint(run: Path) -> Path:
    """The folder of a run's newest complete checkpoint.

    Raises:
        WeightsError: It has none.
    """
    complete = [
        folder
        for folder in sorted((run / "checkpoints").iterdir())
        if _CHECKPOINT.fullmatch(folder.name) and all((folder / name).is_file() for name in _CHECKPOINT_FILES)
    ]
    if not complete:
        raise WeightsError(f"{run}: the run has no complete checkpoint yet")
    return complete[-1]


def _deepspeed_states(folder: Path) -> Path:
    """The model states in a folder that DeepSpeed wrote with ZeRO 0, 1 or 2; these stages keep them whole."""
    if (folder / "latest").is_file():
        tag = (folder / "latest").read_text(encoding="utf-8").strip()
        if Path(tag).name != tag or not (folder / tag).is_dir():
            raise WeightsError(f"{folder}: its file `latest` names {tag!r}, which is no folder in it")
        folder = folder / tag
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        raise WeightsError(
            f"{folder} was written with ZeRO 3, which cuts the parameters up; merge them with DeepSpeed's "
            f"own zero_to_fp32.py --safe_serialization and give its result"
        )
    parts = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if [part.name for part in parts] != [MODEL_STATES]:
        found = f"{len(parts)} model-parallel parts" if parts else "no weights"
        raise WeightsError(
            f"{folder} holds {found}; it must be a run, a checkpoint, an exported model or a DeepSpeed "
            f"folder without model parallelism"
        )
    return parts[0]


def read_file(path: Path) -> TensorFile:
    """All tensors of a file, in float32 where they are floating point.

    Raises:
        UnsafeFileError: It holds more than tensors and plain values; nothing in it was run.
        WeightsError: It is damaged, or holds no mapping of names to tensors.
    """
    file = _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    if not file.tensors:
        raise WeightsError(f"{path} holds no tensors")
    _check_claims(path, file.tensors)
    kinds = {
        str(value.dtype).removeprefix("torch.")
        for value in file.tensors.values()
        if value.is_floating_point()
    }
    tensors = {name: _float32(value) for name, value in _without_prefixes(file.tensors).items()}
    return TensorFile(path, tensors, file.metadata, file.left, ", ".join(sorted(kinds)))


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors by its content, or by its name where the content tells nothing.

    Raises:
        WeightsError: It can't be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} can't be read: {error.strerror}") from error
    # Its header is JSON, behind the length of that; torch.save writes a zip archive, or before 2020 a pickle.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))


def _check_claims(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises a `WeightsError` for tensors that stand for more values than the file holds, one by one or together."""
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise WeightsError(f"{path}: {name[:100]!r} is no plain tensor")
        # A view may repeat its values.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(
                f"{path}: {name[:100]!r} claims {value.numel()} values, more than the file holds"
            )
    # Tied weights share their values, but hardly more than a few of them.
    claimed, held = sum(value.nbytes for value in tensors.values()), path.stat().st_size
    if claimed > 8 * held:
        raise WeightsError(f"{path}: its tensors claim {claimed} bytes, the file has {held}")


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            return TensorFile(path, tensors, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} can't be read as safetensors: {error}") from error


def read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """The names of a safetensors file's tensors, without prefixes that all of them have, and its metadata.

    Raises:
        WeightsError: It is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(_without_prefixes(dict.fromkeys(file.keys()))), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} can't be read as safetensors: {error}") from error


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors to a file that gets its name when it is whole.

    safetensors makes files that only their owner can read; these can be read by whom the umask says.

    Args:
        path: The file; its folder is made where it is not there.
        tensors: Contiguous, on the CPU.
        metadata: Beside the format's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_by_name(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(mode)


def _read_torch(path: Path) -> TensorFile:
    content = load_tensors(path)
    if path.name == MODEL_STATES:
        content = with_float32_weights(path, content)
    left: dict[str, str] = {}
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        inner = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        left |= {str(key): "beside the weights in the file" for key in content if key != inner}
        content = content[inner]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} does not hold a plain mapping of names to tensors")
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other:
        nested = [
            str(key) for key, value in content.items() if isinstance(value, Mapping) and _has_tensors(value)
        ]
        advice = f"; if the weights are those under {nested[0]!r}, save these alone" if nested else ""
        raise WeightsError(
            f"{path} does not hold a plain mapping of names to tensors: {', '.join(other[:3])} "
            f"{'is' if len(other) == 1 else 'are'} none{advice}"
        )
    return TensorFile(path, {str(name): value for name, value in content.items()}, left=left)


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _without_prefixes(tensors: dict[str, T]) -> dict[str, T]:
    for prefix in (p for p in _PREFIXES * 2 if all(name.startswith(p) for name in tensors)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _float32(value: Tensor) -> Tensor:
    return value.detach().float() if value.is_floating_point() else value.detach()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: It is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read as JSON: {error}") from error
    return parse_json(text, path)


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """A JSON object of a file or of its metadata.

    Raises:
        WeightsError: It is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} does not hold a JSON object")
    return value
