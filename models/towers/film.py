"""Towers for films: VideoMAE and TimeSformer from folders of transformers, R3D-18 from torchvision's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torchvision.models.video import r3d_18

from models.towers.base import Tokens, VisualTower
from models.towers.folders import ImageNetTo, keep_folder, open_folder
from models.weights.tensor_files import read_file

FILM = ("videomae", "timesformer")
_KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
_KINETICS_STD = (0.22803, 0.22145, 0.216989)


class FilmTower(VisualTower):
    """VideoMAE or TimeSformer: the tokens of the last layer; TimeSformer's class token beside them.

    Args:
        model: Of transformers.
        settings: Its ``preprocessor_config.json``.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.settings = model, dict(settings)
        config: Any = model.config
        self.config = config
        self.width, self.num_frames = config.hidden_size, config.num_frames
        self.normalize = ImageNetTo.of(settings)

    @classmethod
    def open(cls, folder: Path, *, weights: bool = True) -> FilmTower:
        """The tower in a folder; see `open_folder`."""
        return cls(*open_folder(folder, FILM, weights=weights))

    def keep(self, folder: Path) -> None:
        """See `Tower.keep`."""
        keep_folder(folder, self.model, self.settings)

    def check_size(self, side: int) -> None:
        """See `VisualTower.check_size`."""
        if side != self.config.image_size:
            raise ValueError(
                f"the {self.config.model_type} takes pictures of {self.config.image_size} pixels: set model.image_size "
                f"to it, which is {side}"
            )

    def forward(self, inputs: Tensor) -> Tokens:
        """(B, N, 3, H, W) -> tokens of the grid (moments, H / patch, W / patch)."""
        if inputs.shape[1] != self.num_frames:
            raise ValueError(f"the model takes {self.num_frames} frames of a clip, not {inputs.shape[1]}")
        self.check_size(inputs.shape[-1])
        found = self.model(self.normalize(inputs)).last_hidden_state
        side = self.config.image_size // self.config.patch_size
        cls = None
        if self.config.model_type == "timesformer":  # its patches go place by place
            cls, found = found[:, 0], rearrange(found[:, 1:], "b (p t) d -> b (t p) d", p=side * side)
        grid = (found.shape[1] // side**2, side, side)
        return Tokens(found, found.new_ones(found.shape[:2]).bool(), grid, cls)


class R3dTower(VisualTower):
    """R3D-18 (Tran et al. 2018): a token for each place of the last feature map.

    Its batch norms keep the statistics they were trained with, also in training: they would drift, and a clip's tokens
    would depend on its neighbours.
    """

    width = 512

    def __init__(self) -> None:
        super().__init__()
        model: Any = r3d_18(weights=None)
        model.fc = nn.Identity()
        self.model = model
        self.normalize = ImageNetTo(_KINETICS_MEAN, _KINETICS_STD)
        self.train()

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a file looks like R3D-18's weights."""
        return path.is_file() and _is_r3d(read_file(path).tensors)

    @classmethod
    def open(cls, path: Path) -> R3dTower:
        """The tower in a file of torchvision's weights.

        Raises:
            ValueError: It holds something else, or not all of them.
        """
        weights = read_file(path).tensors
        if not _is_r3d(weights):
            raise ValueError(f"{path} holds no weights of torchvision's r3d_18 (stem.0, layer1 … layer4, fc)")
        tower = cls()
        own = {name: value for name, value in weights.items() if not name.startswith("fc.")}
        different = own.keys() ^ tower.model.state_dict().keys()
        if different:
            raise ValueError(f"{path} is no whole r3d_18: {min(different)} is missing or unknown")
        tower.model.load_state_dict(own)
        return tower

    def train(self, mode: bool = True) -> R3dTower:
        """As of every module, but for the batch norms."""
        super().train(mode)
        for part in self.model.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.eval()
        return self

    def forward(self, inputs: Tensor) -> Tokens:
        """(B, N, 3, H, W) -> tokens of the grid (N / 8, H / 16, W / 16), rounded up."""
        x = rearrange(self.normalize(inputs), "b n c h w -> b c n h w")
        model = self.model
        for layer in (model.stem, model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
        values = rearrange(x, "b d t h w -> b (t h w) d")
        return Tokens(values, values.new_ones(values.shape[:2]).bool(), tuple(x.shape[2:]))


def _is_r3d(weights: Mapping[str, Tensor]) -> bool:
    return {"stem.0.weight", "layer4.1.conv2.0.weight", "fc.weight"} <= weights.keys()
