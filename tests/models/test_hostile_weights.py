"""Weights that others made: what they claim beyond what they hold is refused, and what they say is shown as text."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.export.card import plain_text
from models.weights.errors import WeightsError
from models.weights.sources import read_weights, without_secrets
from models.weights.tensor_files import read_file


def test_a_view_that_repeats_its_values_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"'a' claims 1099511627776 values, more than the file holds"):
        read_file(tmp_path / "a.pth")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as honest, zipfile.ZipFile(tmp_path / "b.pth", "w") as bomb:
        for name in honest.namelist():
            bomb.writestr(name, honest.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="is a compressed archive"):
        read_file(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "model_args",
    [{"checkpoint_path": "evil.pth"}, {"pretrained_cfg_overlay": {}}, {"depth": 10**9}, {"embed_dim": "x" * 200}],
)  # fmt: skip
def test_what_a_folder_may_tell_timm_is_sizes(tmp_path: Path, model_args: dict) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": model_args}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="model_args may hold sizes of a ViT alone"):
        read_weights(tmp_path)


def test_secrets_of_locations_stay_behind() -> None:
    data = {
        "train": "https://me:hunter2@host/set?sig=hunter2",
        "val": ["pipe:curl -H hunter2 {}", "data/set", None],
    }
    assert without_secrets(data) == {"train": "https://host/set", "val": ["pipe:…", "data/set", None]}


def test_text_of_others_is_text_in_a_card() -> None:
    assert plain_text("a\n# b | [c](d) <script>\x1b[31m") == r"a # b \| \[c\](d) &lt;script&gt; \[31m"
