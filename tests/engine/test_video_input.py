"""The lines of docs/README.md that turn a video file into a model's input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.videos import write_video

from engine.config import PretrainConfig, parse_config, save_config
from models import Embeddings, create_model
from models.weights.tensor_files import write_safetensors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "README.md"


def test_three_lines_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("clip.mp4"), seconds=1.0)
    checkpoint = Path("runs/pretrain/checkpoints/step_00000001")
    checkpoint.mkdir(parents=True)
    text = parse_config(PretrainConfig, "test", ["data.train=x", "model.name=cav_mae_tiny"])[1]
    save_config(checkpoint, text)
    save_config(Path("runs/pretrain"), text)
    write_safetensors(checkpoint / "model.safetensors", create_model("cav_mae_tiny").state_dict())
    (checkpoint / "state.json").write_text(json.dumps({"step": 1}))
    lines, imports = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert lines.count("\n") == 3
    found: dict = {}
    exec(imports + lines, found)
    assert (found["waveform"].shape, str(found["waveform"].dtype)) == ((16_000,), "torch.int16")
    assert (found["frames"].shape, str(found["frames"].dtype)) == ((1, 3, 224, 224), "torch.uint8")
    assert isinstance(found["vectors"], Embeddings)
    for vectors in (found["vectors"].audio, found["vectors"].visual, found["vectors"].joint):
        assert vectors is not None
        assert vectors.shape == (1, 192)
