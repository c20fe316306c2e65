"""Weights that others made: what they claim beyond what they hold is refused, and what they say is shown as text."""

from __future__ import annotations

import json
import math
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.small_models import SMALL, small_model

from models import load_pretrained
from models.export.card import plain_text
from models.frontend import FbankConfig
from models.pretrained import load_model
from models.towers.folders import open_folder
from models.weights.classes import kept_classes
from models.weights.errors import WeightsError
from models.weights.sources import read_weights, stated_description, without_secrets
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


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": 5},
        {"architecture": ["vit_tiny_patch16_224"]},
        {"architecture": "vit_tiny_patch16_224", "model_args": 5},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": "x"}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 5}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"patch_size": 0}},
    ],
)
def test_a_folder_that_describes_no_model_is_refused(tmp_path: Path, config: dict) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        WeightsError, match=r"config.json: (architecture must be a name|timm can't make vit_tiny)"
    ):
        read_weights(tmp_path)


def test_a_file_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match="does not hold a plain mapping of names to tensors: model is none"
    ):
        read_file(tmp_path / "a.pth")


def test_what_a_file_says_of_itself_is_looked_for_by_its_content(tmp_path: Path) -> None:
    torch.save({"encoder.a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert stated_description(tmp_path / "a.safetensors") is None


def test_secrets_of_locations_stay_behind() -> None:
    data = {
        "train": "https://me:hunter2@host/set?sig=hunter2",
        "val": ["pipe:curl -H hunter2 {}", "data/set", None],
    }
    assert without_secrets(data) == {"train": "https://host/set", "val": ["pipe:…", "data/set", None]}
    assert without_secrets("https://u:p@ss@host/x?a=b@c") == "https://host/x"
    assert without_secrets("https://host?a=b@c") == "https://host"


def test_text_of_others_is_text_in_a_card() -> None:
    assert plain_text("a\n# b | [c](d) <script>\x1b[31m") == r"a # b \| \[c\](d) &lt;script&gt; \[31m"
    assert plain_text("a\u202eb") == r"a\\u202eb"


def test_a_spectrogram_of_no_numbers_is_refused() -> None:
    for mean, std in ((math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="must be finite"):
            FbankConfig(mean=mean, std=std)


def test_a_vocabulary_without_end_is_damage(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"classes.json is not JSON"):
        kept_classes(tmp_path)


def test_an_archive_whose_parts_overlap_is_refused(tmp_path: Path) -> None:
    """A hundred members that are the same bytes of the file: each would be read anew."""
    torch.save({"a": torch.zeros(1 << 16)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        [data] = [member for member in archive.infolist() if member.filename.endswith("data/0")]
        for number in range(1, 100):
            copy = zipfile.ZipInfo(f"a/data/{number}")
            for name in ("compress_size", "file_size", "header_offset", "CRC"):
                setattr(copy, name, getattr(data, name))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True  # type: ignore[attr-defined]
    assert (tmp_path / "a.pth").stat().st_size < 400_000
    with pytest.raises(WeightsError, match="is an archive whose parts overlap"):
        read_file(tmp_path / "a.pth")


def test_tensors_that_share_their_values_are_bounded_together(tmp_path: Path) -> None:
    shared = torch.zeros(1 << 16, dtype=torch.float16)
    torch.save({f"{i}": shared.view(256, 256) for i in range(50)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"its tensors claim 6553600 bytes, the file has"):
        read_file(tmp_path / "a.pth")
    torch.save({"a": shared, "tied": shared}, tmp_path / "b.pth")
    assert len(read_file(tmp_path / "b.pth").tensors) == 2


def test_only_plain_tensors_are_weights(tmp_path: Path) -> None:
    for value in (torch.eye(3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save({"a": value}, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match=r"'a' is no plain tensor|can't be read"):
            read_file(tmp_path / "a.pth")


def safetensors(header: dict | bytes, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", claimed=1 << 62),
        safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 60]}}, bytes(4)),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        safetensors(
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
        ),
        safetensors(b'{"a":' * 5000 + b"}" * 5000),
    ],
    ids=["header", "shape", "offset", "backwards", "overlap", "deep"],
)
def test_a_safetensors_header_holds_what_it_claims(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="can't be read as safetensors"):
        read_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality_depth": 100_000}, "model.modality_depth is 100000; it can be 256 at most"),
        ({"modality_depth": 100, "embed_dim": 4096}, "describes a model of .* values and holds"),
        ({"embed_dim": 1 << 40}, "it can be 65536 at most"),
        ({"image_size": 65_536, "patch_size": 1}, "is more than can be computed with"),
        ({"embed_dim": "wide"}, "config.yaml: model: "),
        ({"name": "x" * 1_000_000}, "^.{1,1000}$"),
        ({"num_mel_bins": 512}, "its model 32×. positions"),
        ({"class_path": "os.system"}, "unknown settings: class_path"),
        ({"name": "hf-hub:someone/model"}, "unknown model 'hf-hub:someone/model'"),
    ],
    ids=str,
)
def test_a_description_is_no_larger_than_its_weights(tmp_path: Path, changes: dict, message: str) -> None:
    save_file(small_model().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"name": "cav_mae_tiny", **SMALL, **changes}}))
    started = time.monotonic()
    for load in (load_pretrained, lambda source: load_model(read_weights(source))):
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / "model.safetensors")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "architecture", ["hf-hub:someone/model", "hf_hub:x/y", "local-dir:.", "../x", "os.system"]
)
def test_a_folder_names_no_model_of_elsewhere(tmp_path: Path, architecture: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    with pytest.raises(WeightsError, match="timm has no model"):
        read_weights(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_transformers_brings_no_code_and_no_absurd_size(tmp_path: Path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    transformers.AutoModel.from_config(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
    auto_map = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config | auto_map))
    assert open_folder(tmp_path, ("dinov2",))[1] == {}
    assert not marker.exists()
    absurd = [{"num_hidden_layers": 100_000}, {"hidden_size": 24_000}, {"hidden_size": 1 << 40}]
    for changes in (*absurd, {"hidden_size": "x"}, {"patch_size": 0}):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=r"config.json"):
            open_folder(tmp_path, ("dinov2",))
    (tmp_path / "config.json").write_text(json.dumps(config))
    for changes in (
        {"crop_size": {"height": 1_000_000}}, {"crop_size": "x"}, {"size": [-1]}, {"size": {"shortest_edge": 0.5}},
        {"image_mean": ["x", 0, 0]}, {"image_std": [0.5]}, {"image_std": [1e300] * 3},
    ):  # fmt: skip
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(changes))
        with pytest.raises(ValueError, match=r"preprocessor_config.json"):
            open_folder(tmp_path, ("dinov2",))
