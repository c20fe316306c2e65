"""Towers from local folders that transformers wrote: HuBERT and Wav2Vec2 for sound, DINOv2 for pictures (optional).

Nothing is downloaded and no code of a folder is run. Dropout, layer drop and SpecAugment are switched off: they draw
from a generator whose state no checkpoint holds, and short clips would fail in them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from atomic import write_atomically
from models.frontend import IMAGENET_MEAN, IMAGENET_STD
from models.towers.base import AudioTower, Sound, Tokens, VisualTower, first

_PREPROCESSOR = "preprocessor_config.json"
SOUND = ("hubert", "wav2vec2")
PICTURE = ("dinov2",)
_EAGER = ("timesformer",)  # which transformers has no fused attention for
_DEEPEST, _SPARE_VALUES = 256, 1 << 24
#: Values of a model whose weights are in a checkpoint, not in its folder.
_MOST_VALUES = 1 << 32
_LARGEST_SIDE = 4096  # of pictures
_OFF = {
    "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop", "mask_time_prob",
    "mask_feature_prob", "final_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate",
}  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of a folder; nothing where there is none.

    Raises:
        ValueError: The file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def import_transformers(asking: object) -> Any:
    """The optional package; untyped, since a type checker would take minutes to infer its types.

    Raises:
        ValueError: It isn't installed; the message begins with ``asking``, what needs it.
    """
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise ValueError(f"{asking} needs transformers: pip install -e '.[backbones]'") from None


def open_folder(
    folder: Path, kinds: tuple[str, ...], *, weights: bool = True, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """The model in a folder, and the settings of its preprocessor.

    Args:
        folder: What transformers' ``save_pretrained`` wrote.
        kinds: The ``model_type`` wanted.
        weights: Whether its weights are read; without them they are drawn, to be replaced.
        options: For the model's class, such as ``add_pooling_layer``.

    Raises:
        ValueError: transformers is missing, the folder holds another model or none, or not all of its weights.
    """
    settings = read_settings(folder / "config.json")
    kind = settings.get("model_type")
    if kind not in kinds:
        what = f"holds a {kind} model" if kind else "holds no config.json with a model_type"
        raise ValueError(
            f"{folder} {what}; wanted is a folder of {' or '.join(kinds)}, as transformers writes it"
        )
    if (
        folder / "adapter_config.json"
    ).exists():  # with it, transformers would read the model of another folder
        raise ValueError(f"{folder} holds an adapter to a model, not the model: merge them first")
    transformers = import_transformers(folder)
    preprocessor = _read_preprocessor(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        for name in _OFF:  # whether config.json names them or they are the library's defaults
            if hasattr(config, name):  # some are checked for their type
                setattr(config, name, 0 if isinstance(getattr(config, name), int) else 0.0)
        _check_size(folder, config, weights)
    except Exception as error:  # of any kind: hardly anything of a config is checked where it is read
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{folder / 'config.json'} describes no model: {reason}") from error
    options["attn_implementation"] = "eager" if kind in _EAGER else "sdpa"
    if not weights:
        return transformers.AutoModel.from_config(config, **options), preprocessor
    try:
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no weights that can be read: {error}") from None
    if loading["missing_keys"]:
        raise ValueError(f"{folder} lacks weights of the model, such as {sorted(loading['missing_keys'])[0]}")
    return model, preprocessor


def _read_preprocessor(folder: Path) -> dict[str, Any]:
    """A folder's ``preprocessor_config.json``; a ``ValueError`` names what of it can't be used."""
    path = folder / _PREPROCESSOR
    settings = read_settings(path)
    for name in ("image_mean", "image_std"):
        values = settings.get(name, IMAGENET_MEAN)
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_finite, values)):
            raise ValueError(f"{path}: {name} must be three numbers")
    for name in ("crop_size", "size"):
        sides = settings.get(name) or {}
        sides = list(sides.values()) if isinstance(sides, dict) else [sides]
        if not all(isinstance(side, int) and 1 <= side <= _LARGEST_SIDE for side in sides):
            raise ValueError(f"{path}: {name} must be sides of 1 to {_LARGEST_SIDE} pixels")
    return settings


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e6


def keep_folder(folder: Path, model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Writes what `open_folder` needs without weights."""
    config: Any = model.config
    config.save_pretrained(folder)
    write_atomically(folder / _PREPROCESSOR, json.dumps(settings, indent=1) + "\n")


class ImageNetTo(nn.Module):
    """Pictures normalised by ImageNet's mean and deviation -> by others.

    Args:
        mean: The others' mean of the channels, of 0 … 1.
        std: Their deviation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        wanted, spread, ours, own_spread = (
            torch.tensor(tuple(values))[:, None, None] for values in (mean, std, IMAGENET_MEAN, IMAGENET_STD)
        )
        self.register_buffer("scale", own_spread / spread, persistent=False)
        self.register_buffer("shift", (ours - wanted) / spread, persistent=False)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ImageNetTo:
        """That of a ``preprocessor_config.json``."""
        return cls(settings.get("image_mean", IMAGENET_MEAN), settings.get("image_std", IMAGENET_STD))

    def forward(self, pictures: Tensor) -> Tensor:
        """(..., 3, H, W) -> the same."""
        return pictures * self.scale + self.shift


def _check_size(folder: Path, config: Any, weights: bool) -> None:
    """Raises a ``ValueError`` where a folder describes a model far larger than its weights, before that is built."""
    transformers = import_transformers(folder)
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    held = held if weights else _MOST_VALUES
    for name, value in config.to_dict().items():
        sizes = value if isinstance(value, list | tuple) else [value]
        largest = _DEEPEST if "layers" in name else max(held, _SPARE_VALUES)
        if len(sizes) > _DEEPEST or any(isinstance(size, int) and size > largest for size in sizes):
            raise ValueError(f"{folder / 'config.json'}: {name} is more than any model with its weights has")
    with torch.device("meta"):  # no memory is taken
        values = sum(
            value.numel() for value in transformers.AutoModel.from_config(config).state_dict().values()
        )
    if values > held + _SPARE_VALUES:  # a value takes a byte at least
        raise ValueError(
            f"{folder / 'config.json'} describes a model of {values} values; its weights are {held} bytes"
        )


class WaveTower(AudioTower):
    """HuBERT or Wav2Vec2: the last layer's tokens, about 20 ms each.

    Where the first layer normalises over time (``feat_extract_norm: group``, the base models) its statistics are those
    of each clip's own frames, so that padding changes nothing.

    Args:
        model: Of transformers.
        settings: Its ``preprocessor_config.json``.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.settings = model, dict(settings)
        config: Any = model.config
        self.width = config.hidden_size
        self.normalize = settings.get("do_normalize", True)
        self.sample_rate = settings.get("sampling_rate", 16000)
        self.grouped = config.feat_extract_norm == "group"
        self.convs = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.least = 1  # samples that make one token
        for kernel, stride in reversed(self.convs):
            self.least = (self.least - 1) * stride + kernel

    @classmethod
    def open(cls, folder: Path, *, weights: bool = True) -> WaveTower:
        """The tower in a folder; see `open_folder`."""
        return cls(*open_folder(folder, SOUND, weights=weights))

    def keep(self, folder: Path) -> None:
        """See `Tower.keep`."""
        keep_folder(folder, self.model, self.settings)

    def forward(self, inputs: Sound) -> Tokens:
        """Tokens of the grid (T,). A clip too short for one token gives one, of the clip and zeros behind it."""
        if inputs.waveform is None or inputs.num_samples is None:
            raise ValueError("this tower hears waveforms, and was given a spectrogram alone")
        waveform = F.pad(inputs.waveform, (0, max(0, self.least - inputs.waveform.shape[1])))
        samples = inputs.num_samples.clamp_min(self.least)
        features, count = self._extract(self._normalized(waveform, samples), samples)
        mask = first(count, features.shape[2])
        model: Any = self.model
        hidden = model.feature_projection(rearrange(features, "b c t -> b t c"))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # Wav2Vec2 gives its input as well
        values = self._encode(hidden.masked_fill(~mask[..., None], 0.0), mask)
        return Tokens(values, mask, (values.shape[1],))

    def _encode(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The transformer: (B, T, D), zero where there is no sound -> (B, T, D).

        Layer by layer, since transformers' own loop reads the mask on the host to see whether it needs it.
        """
        model: Any = self.model
        encoder, stable = model.encoder, model.config.do_stable_layer_norm
        hidden = hidden + encoder.pos_conv_embed(hidden)
        hidden = hidden if stable else encoder.layer_norm(hidden)
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=mask[:, None, None])
        return encoder.layer_norm(hidden) if stable else hidden

    def _normalized(self, waveform: Tensor, samples: Tensor) -> Tensor:
        """Zero mean and unit variance over each clip's own samples, as the models were trained."""
        inside = first(samples, waveform.shape[1])
        wave = waveform if waveform.is_floating_point() else waveform.float() / 32768
        if not self.normalize:
            return wave * inside
        count = samples[:, None]
        wave = (wave - (wave * inside).sum(1, keepdim=True) / count) * inside
        variance = wave.square().sum(1, keepdim=True) / count
        return wave / (variance + 1e-7).sqrt()

    def _extract(self, wave: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, C, T) of the convolutions, which have no padding of their own, and (B,) how many are real."""
        x = wave[:, None]
        model: Any = self.model
        layers = model.feature_extractor.conv_layers
        for n, (layer, (kernel, stride)) in enumerate(zip(layers, self.convs, strict=True)):
            count = (count - kernel) // stride + 1
            if self.grouped and n == 0:
                x = layer.activation(_masked_group_norm(layer.layer_norm, layer.conv(x), count))
            else:
                x = layer(x)
        return x, count


def _masked_group_norm(norm: nn.GroupNorm, x: Tensor, count: Tensor) -> Tensor:
    """A GroupNorm with a group to each channel, over the first ``count`` moments of each clip: (B, C, T)."""
    inside = first(count, x.shape[2])[:, None]
    total = count[:, None, None]
    centred = (x - (x * inside).sum(2, keepdim=True) / total) * inside
    variance = centred.square().sum(2, keepdim=True) / total
    return centred * (variance + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]


class PictureTower(VisualTower):
    """DINOv2: the patch tokens and the class token after the last norm.

    Args:
        model: Of transformers.
        settings: Its ``preprocessor_config.json``.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.settings = model, dict(settings)
        config: Any = model.config
        self.width, self.patch_size = config.hidden_size, config.patch_size
        self.normalize = ImageNetTo.of(settings)
        if (mask_token := getattr(model.embeddings, "mask_token", None)) is not None:
            mask_token.requires_grad_(False)  # of its pretraining; nothing is masked here

    @classmethod
    def open(cls, folder: Path, *, weights: bool = True) -> PictureTower:
        """The tower in a folder; see `open_folder`."""
        return cls(*open_folder(folder, PICTURE, weights=weights))

    def keep(self, folder: Path) -> None:
        """See `Tower.keep`."""
        keep_folder(folder, self.model, self.settings)

    def check_size(self, side: int) -> None:
        """See `VisualTower.check_size`: they must be cut in the backbone's patches."""
        if side % self.patch_size:
            raise ValueError(
                f"pictures with a side of {side} pixels can't be cut in the backbone's patches of {self.patch_size}: "
                f"set model.image_size to a multiple of {self.patch_size}"
            )

    def forward(self, inputs: Tensor) -> Tokens:
        """(B, N, 3, H, W) -> tokens of the grid (N, H / patch, W / patch); the class token is the frames' mean."""
        frames, height, width = inputs.shape[1], *inputs.shape[3:]
        self.check_size(height)
        self.check_size(width)
        pictures = rearrange(self.normalize(inputs), "b n c h w -> (b n) c h w")
        found = self.model(pictures).last_hidden_state
        values = rearrange(found[:, 1:], "(b n) l d -> b (n l) d", n=frames)
        cls = rearrange(found[:, 0], "(b n) d -> b n d", n=frames).mean(1)
        grid = (frames, height // self.patch_size, width // self.patch_size)
        return Tokens(values, values.new_ones(values.shape[:2]).bool(), grid, cls)
