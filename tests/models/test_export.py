"""Round trips and exports: the same function in every form."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.published import load_published
from support.shards import make_picture, make_waveform
from support.small_models import SMALL, inputs, small_model
from support.sources import mae_state, randomize

from models import AudioFrontEnd, AudioVisualClassifier, CavMaeModelConfig, FbankConfig, load_pretrained
from models.convert import convert
from models.convert import main as convert_main
from models.export.formats import export
from models.export.formats import main as export_main
from models.export.program import missing_onnx_packages
from models.weights.description import Description, save_described
from models.weights.errors import WeightsError
from models.weights.initialize import Outcome
from models.weights.published import to_published
from models.weights.sources import read_weights

REFERENCE = Path(__file__).parents[1] / "reference" / "cav_mae_norm_pix.safetensors"
HEADS = {"num_heads": 2, "decoder_num_heads": 4}


def described(path: Path, kind: str = "mae", **overrides) -> Any:
    """Writes a model with its description; returns it."""
    config = CavMaeModelConfig("cav_mae_tiny", **(SMALL | overrides))
    model = small_model(**overrides) if kind == "mae" else AudioVisualClassifier(config, 5)
    randomize(model)
    fbank = FbankConfig(target_length=64, num_mel_bins=32, mean=-4.0, std=3.0)
    labels = None if kind == "mae" else ("a", "b", "c", "d", "e")
    save_described(path, model.state_dict(), Description(config, fbank, labels, {"step": 7}))
    return model


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_ours_to_published_and_back_is_exact(tmp_path, kind):
    model = described(tmp_path / "ours.safetensors", kind, layer_norm_eps=1e-5)
    for suffix in (".pth", ".safetensors"):
        there = tmp_path / f"published{suffix}"
        report = convert(str(tmp_path / "ours.safetensors"), there, "published")
        assert "epsilon" not in report
        known = {"num_heads": 2, "decoder_num_heads": 2, "num_mel_bins": 32}
        convert(str(there), tmp_path / "back.safetensors", "earsight", known=known)
        back = read_weights(tmp_path / "back.safetensors")
        assert all(torch.equal(back.state[name], value) for name, value in model.state_dict().items())
        assert back.num_classes == (None if kind == "mae" else 5)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_reference_files_go_through_ours_unchanged(tmp_path, kind):
    state = {
        k.removeprefix(f"{kind}."): v for k, v in load_file(REFERENCE).items() if k.startswith(f"{kind}.")
    }
    torch.save(state, tmp_path / "cav.pth")
    convert(str(tmp_path / "cav.pth"), tmp_path / "ours.safetensors", "earsight", known=HEADS)
    convert(str(tmp_path / "ours.safetensors"), tmp_path / "again.pth", "published")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == state.keys()
    _, report = load_published(state, **HEADS)
    never_used = {f"module.{name}" for name in report.names(Outcome.ignored)}
    assert len(never_used) == (192 if kind == "pretrain" else 176)
    for name in state.keys() - never_used:
        assert torch.equal(again[name], state[name]), name


def test_a_mae_file_becomes_a_published_one(tmp_path):
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    settings = ["num_heads=2", "decoder_num_heads=2", "audio_length=64", "num_mel_bins=32"]
    paths = [str(tmp_path / "mae.pth"), str(tmp_path / "out.pth")]
    convert_main([*paths, "--to", "published", "--set", *settings])
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    model, _ = load_published(state, num_heads=2, decoder_num_heads=2, num_mel_bins=32)
    assert torch.equal(
        model.state_dict()["encoder.audio.blocks.0.norm1.weight"], mae_state()["blocks.0.norm1.weight"]
    )


def test_the_difference_of_the_epsilons_is_told(tmp_path):
    described(tmp_path / "ours.safetensors")
    report = convert(str(tmp_path / "ours.safetensors"), tmp_path / "out.pth", "published")
    assert "epsilon is 1e-06 in this model and 1e-05 in the published code" in report


def test_mistakes_on_the_command_line_are_errors(tmp_path, capsys):
    described(tmp_path / "ours.safetensors")
    for arguments, message in [
        ([str(tmp_path / "nothing"), str(tmp_path / "a.safetensors")], "no such file"),
        ([str(tmp_path / "ours.safetensors"), str(tmp_path / "a.pth")], "must end in .safetensors"),
        (
            [str(tmp_path / "ours.safetensors"), str(tmp_path / "a.safetensors"), "--set", "num_head=2"],
            "num_heads",
        ),
    ]:
        with pytest.raises(SystemExit) as caught:
            convert_main(arguments)
        assert caught.value.code == 1
        assert message in capsys.readouterr().err


def test_an_exported_model_loads_in_one_line(tmp_path):
    model = described(tmp_path / "ours.safetensors", "classifier")
    export(str(tmp_path / "ours.safetensors"), tmp_path / "out", "earsight")
    encoders = load_pretrained(tmp_path / "out")
    state = encoders.encoder.state_dict()
    assert all(torch.equal(value, model.encoder.state_dict()[name]) for name, value in state.items())
    assert encoders.description.labels == ("a", "b", "c", "d", "e")
    assert encoders.fbank == FbankConfig(target_length=64, num_mel_bins=32, mean=-4.0, std=3.0)
    assert encoders.description.provenance["step"] == 7
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["frames"]["size"] == 32
    assert len(config["weights_sha256"]) == 64
    card = (tmp_path / "out" / "README.md").read_text()
    assert "load_pretrained('out')" in card
    assert "a, b, c, d, e" in card
    with pytest.raises(WeightsError, match="there already"):
        export(str(tmp_path / "ours.safetensors"), tmp_path / "out", "timm")
    with pytest.raises(WeightsError, match="encoder alone"):
        export(str(tmp_path / "out"), tmp_path / "other", "published")


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-3])
def test_timm_folders_are_the_same_function_with_any_epsilon(tmp_path, eps):
    import timm

    model = described(tmp_path / "ours.safetensors", joint_depth=2, layer_norm_eps=eps)
    result = export(str(tmp_path / "ours.safetensors"), tmp_path / "out", "timm")
    assert ("timm's own" in result) == (eps == 1e-6)
    fbank, frames, _, _ = inputs(model.config)
    with torch.no_grad():
        embeddings = model.encoder.embed(fbank, frames)
        audio, visual = embeddings.audio, embeddings.visual
        for name, expected, given in (
            ("audio", audio, fbank.transpose(1, 2)[:, None]),
            ("visual", visual, frames),
        ):
            vit: Any = timm.create_model(f"local-dir:{tmp_path / 'out' / name}", pretrained=True).eval()
            assert len(vit.blocks) == 4
            torch.testing.assert_close(vit(given), expected, rtol=0, atol=1e-5)


_FRESH = """
import sys
from pathlib import Path
from typing import Any
# Where Earsight is installed in editable form, it is taken out of this process's way.
sys.path = [path for path in sys.path if Path(path).resolve() != Path(sys.argv[1])]
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
import torch, timm
assert not any(name in sys.modules for name in ("models", "engine", "datasets"))
try:
    import models
except ImportError:
    pass
else:
    raise SystemExit("Earsight can be imported here")
given = torch.load("given.pt", weights_only=True)
found = {}
for name in ("audio", "visual"):
    found[name] = timm.create_model(f"local-dir:out/{name}", pretrained=True).eval()(given[name]).detach()
settings = timm.data.resolve_model_data_config(timm.create_model("local-dir:out/visual", pretrained=True))
assert settings["input_size"] == (3, 32, 32) and settings["crop_pct"] == 1.0, settings
torch.save(found, "found.pt")
"""


def test_timm_opens_them_where_there_is_no_earsight(tmp_path):
    model = described(tmp_path / "ours.safetensors")
    export(str(tmp_path / "ours.safetensors"), tmp_path / "out", "timm")
    fbank, frames, _, _ = inputs(model.config)
    torch.save(
        {"audio": fbank.transpose(1, 2)[:, None].contiguous(), "visual": frames}, tmp_path / "given.pt"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", _FRESH, str(Path(__file__).resolve().parents[2])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    with torch.no_grad():
        expected = model.encoder.embed(fbank, frames)
    for name in ("audio", "visual"):
        torch.testing.assert_close(found[name], getattr(expected, name), rtol=0, atol=1e-5)


def test_the_published_export_loads_strictly(tmp_path):
    model = described(tmp_path / "ours.safetensors", layer_norm_eps=1e-5)
    export_main([str(tmp_path / "ours.safetensors"), str(tmp_path / "out"), "--format", "published"])
    state = torch.load(tmp_path / "out" / "cav_mae.pth", weights_only=True)
    expected = to_published(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> tuple[Any, Path, str]:
    """A model, its programs (with ONNX files where the packages are there) and what was said of them."""
    folder = tmp_path_factory.mktemp("programs")
    model = described(folder / "ours.safetensors")
    onnx = not missing_onnx_packages()
    result = export(str(folder / "ours.safetensors"), folder / "out", "torch_export", onnx=onnx)
    return model, folder / "out", result


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the code of an exported folder's model card, beside a sound and a picture; returns its variables."""
    monkeypatch.chdir(folder.parent)
    soundfile.write("sound.wav", make_waveform(0, 0.3), 16_000)
    Image.fromarray(make_picture(0, 0, (48, 40))).save("picture.jpg", quality=100)
    variables: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL):
        exec(code, variables)
    return variables


def test_the_cards_of_encoders_and_timm_do_what_they_say(tmp_path, monkeypatch):
    described(tmp_path / "ours.safetensors")
    for form in ("earsight", "timm"):
        export(str(tmp_path / "ours.safetensors"), tmp_path / form, form)
    ours = run_card(tmp_path / "earsight", monkeypatch)
    assert ours["vectors"].joint.shape == (1, 32)
    theirs = run_card(tmp_path / "timm", monkeypatch)
    fbank = ours["encoders"].audio_front_end(ours["waveform"], torch.tensor([ours["waveform"].shape[1]]))
    expected = ours["encoders"].encoder(fbank, joint=False).audio.mean(dim=1)  # with the padding
    torch.testing.assert_close(theirs["vector"], expected, rtol=0, atol=1e-4)  # another log-mel in float32
    picture = theirs["visual"](theirs["transform"](Image.open(tmp_path / "picture.jpg").convert("RGB"))[None])
    distance = (picture - ours["vectors"].visual).abs().max() / ours["vectors"].visual.abs().max()
    assert distance < 0.05  # two decoders and resizers of pictures


def test_the_card_of_programs_does_what_it_says(programs, monkeypatch):
    if missing_onnx_packages():
        pytest.skip(f"not installed: {missing_onnx_packages()}")
    model, folder, _ = programs
    found = run_card(folder, monkeypatch)
    with torch.no_grad():
        expected = model.encoder(found["fbank"], joint=False).audio.mean(dim=1)
    torch.testing.assert_close(torch.from_numpy(found["vectors"]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_a_published_card_names_the_model_to_build(tmp_path, kind):
    described(tmp_path / "ours.safetensors", kind, modality_depth=11)
    export(str(tmp_path / "ours.safetensors"), tmp_path / "out", "published")
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("from models import CAVMAEFT" in card) == (kind == "classifier")
    assert ("label_dim=5" in card) == (kind == "classifier")
    assert ("decoder_depth=1" in card) == (kind == "mae")
    assert "modality_specific_depth=11, num_heads=2" in card
    assert "128 mel bins in patches of 16" in card  # and this model has 32
    assert "builds 12 blocks" not in card
    described(tmp_path / "short.safetensors", kind)
    result = export(str(tmp_path / "short.safetensors"), tmp_path / "short", "published")
    assert "can't load these 2 + 1 as it is" in result


def test_what_is_written_can_be_read_by_others(tmp_path):
    mask = os.umask(0o022)
    try:
        described(tmp_path / "ours.safetensors")
        for form in ("earsight", "timm", "published"):
            export(str(tmp_path / "ours.safetensors"), tmp_path / form, form)
    finally:
        os.umask(mask)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 11
    assert {path.stat().st_mode & 0o777 for path in written} == {0o644}


def streams_of(model: Any, batch: int) -> list[tuple[str, tuple[torch.Tensor, ...], torch.Tensor]]:
    """For each stream its name, its inputs and our vectors."""
    fbank, frames, _, _ = inputs(model.config, batch=batch, seed=batch)
    with torch.no_grad():
        streams = model.encoder(fbank, frames)
    given = {"audio": (fbank,), "visual": (frames,), "joint": (fbank, frames)}
    return [(name, given[name], getattr(streams, name).mean(dim=1)) for name in given]


@pytest.mark.filterwarnings("ignore")
def test_programs_take_any_batch(programs):
    model, folder, _ = programs
    for batch in (1, 5):
        for name, given, expected in streams_of(model, batch):
            program = torch.export.load(folder / f"{name}.pt2").module()
            torch.testing.assert_close(program(*given), expected, rtol=0, atol=1e-5)
    fbank = FbankConfig(target_length=64, num_mel_bins=32, mean=-4.0, std=3.0)
    given = torch.rand(3, fbank.num_samples) - 0.5, torch.tensor([fbank.num_samples, 900, 5000])
    front_end = torch.export.load(folder / "front_end.pt2").module()
    torch.testing.assert_close(front_end(*given), AudioFrontEnd(fbank)(*given), rtol=0, atol=1e-5)


@pytest.mark.skipif(bool(missing_onnx_packages()), reason=f"not installed: {missing_onnx_packages()}")
def test_onnx_files_agree(programs):
    model, folder, result = programs
    assert "audio.onnx" in result
    for batch in (1, 5):
        for name, given, expected in streams_of(model, batch):
            torch.testing.assert_close(_run_onnx(folder / f"{name}.onnx", given), expected, rtol=0, atol=1e-4)


def _run_onnx(path: Path, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), given, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def test_labels_come_from_the_training_shards(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "index.json").write_text(json.dumps({"labels": [{"name": "dog"}, {"name": "cat"}]}))
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    save_file(small_model().state_dict(), checkpoint / "model.safetensors")
    (checkpoint / "state.json").write_text(json.dumps({"step": 1}))
    text = "".join(f"\n  {key}: {value}" for key, value in SMALL.items())
    (checkpoint / "config.yaml").write_text(f"data:\n  train: {shards}\nmodel:\n  name: cav_mae_tiny{text}\n")
    export(str(tmp_path / "run"), tmp_path / "out", "earsight")
    assert load_pretrained(tmp_path / "out").description.labels == ("dog", "cat")
    (shards / "index.json").unlink()
    assert f"{shards} is not here" in export(str(tmp_path / "run"), tmp_path / "without", "earsight")
