"""Finding weights, recognising whose they are, and running nothing that is in them."""

import argparse
import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.processes import run_ranks
from support.small_models import SMALL, small_model
from support.sources import Calls, Hostile, mae_state, small_vit

from models import CavMaeModelConfig
from models.convert import convert
from models.weights.description import Description, save_described
from models.weights.errors import UnsafeFileError, WeightsError
from models.weights.initialize import Outcome, initialize
from models.weights.sources import SourceKind, read_weights
from models.weights.tensor_files import locate, read_file
from models.weights.unpickle import load_tensors

REFERENCE = Path(__file__).parents[1] / "reference" / "cav_mae_norm_pix.safetensors"
CONFIG = CavMaeModelConfig("cav_mae_tiny", **SMALL)


def write_checkpoint(run: Path, step: int, *, complete: bool = True) -> Path:
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    save_file(
        {"encoder.audio.patch_embed.weight": torch.full((2, 2), float(step))}, folder / "model.safetensors"
    )
    model = "".join(f"\n  {key}: {value}" for key, value in SMALL.items())
    (folder / "config.yaml").write_text(f"output_dir: {run}\nseed: 3\nmodel:\n  name: cav_mae_tiny{model}\n")
    if complete:
        (folder / "state.json").write_text(json.dumps({"step": step, "world_size": 2}))
    return folder


def test_a_run_stands_for_its_newest_complete_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 10)
    newest = write_checkpoint(tmp_path, 20)
    write_checkpoint(tmp_path, 30, complete=False)
    (tmp_path / "checkpoints" / ".writing_step_00000040").mkdir()
    for source in (tmp_path, newest, newest / "model.safetensors"):
        found = read_weights(source)
        assert found.kind is SourceKind.earsight
        assert found.config == CONFIG
        assert found.provenance["step"] == 20
        assert found.provenance["run"] == str(tmp_path)
        assert found.state["encoder.audio.patch_embed.weight"][0, 0] == 20


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match="no complete checkpoint"):
        read_weights(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no weights"):
        read_weights(tmp_path / "empty")


def test_classes_of_a_fine_tuning_run_are_known(tmp_path):
    write_checkpoint(tmp_path, 1)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert read_weights(tmp_path).labels == ("dog", "cat")


def test_averaged_weights_find_the_run_s_config(tmp_path):
    config = write_checkpoint(tmp_path, 1) / "config.yaml"
    shutil.copy(config, tmp_path / "config.yaml")
    (tmp_path / "average").mkdir()
    save_file(
        {"encoder.audio.patch_embed.weight": torch.zeros(2, 2)}, tmp_path / "average" / "epoch_3.safetensors"
    )
    assert read_weights(tmp_path / "average" / "epoch_3.safetensors").config == CONFIG


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_published_files_under_any_wrapping(kind, tmp_path):
    state = {
        k.removeprefix(f"{kind}."): v for k, v in load_file(REFERENCE).items() if k.startswith(f"{kind}.")
    }
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    for name, key in (("b", "state_dict"), ("c", "model_state_dict"), ("d", "model_state")):
        torch.save({key: state, "epoch": 5}, tmp_path / f"{name}.pth")
    # Others name files as they like: the content says what they are.
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "e.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "f.safetensors")
    names = ("a.safetensors", "a.pth", "b.pth", "c.pth", "d.pth", "e.pth", "f.safetensors")
    found = [read_weights(tmp_path / name) for name in names]
    for source in found:
        assert source.kind is SourceKind.cav_mae
        assert source.state.keys() == {name.removeprefix("module.") for name in state}
        assert source.num_classes == (7 if kind == "finetune" else None)
    assert [list(source.left) for source in found] == [[], [], *[["epoch"]] * 3, [], []]
    config = cast(CavMaeModelConfig, found[0].model_config(num_heads=2, decoder_num_heads=4))
    assert config.architecture.modality_depth == 11
    with pytest.raises(WeightsError, match="num_heads cannot be told"):
        found[0].model_config()


def test_the_config_of_a_mae_file_is_inferred(tmp_path):
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    source = read_weights(tmp_path / "mae.pth")
    assert source.kind is SourceKind.vit
    with pytest.raises(WeightsError, match="num_heads"):
        source.model_config()
    config = source.model_config(num_heads=2, decoder_num_heads=2, audio_length=64, num_mel_bins=32)
    arch = cast(CavMaeModelConfig, config).architecture
    assert (arch.embed_dim, arch.modality_depth, arch.joint_depth) == (32, 2, 1)
    assert (arch.decoder_embed_dim, arch.decoder_depth) == (16, 1)
    assert config.image_size == 32


def test_a_timm_model_by_name_must_be_that_model(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", depth=12)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    source = read_weights(f"timm:vit_tiny_patch16_224:{tmp_path / 'vit.safetensors'}")
    assert source.num_heads == 3
    assert source.model_config().encoder_heads == 3
    tagged = "timm:vit_tiny_patch16_224.augreg_in21k"
    assert read_weights(f"{tagged}:{tmp_path / 'vit.safetensors'}").provenance["timm"] == tagged[5:]
    with pytest.raises(WeightsError, match=r"no model 'vit_tiny_patch16_224\.nonsense'"):
        read_weights(f"timm:vit_tiny_patch16_224.nonsense:{tmp_path / 'vit.safetensors'}")
    with pytest.raises(WeightsError, match=r"missing .*dist_token"):
        read_weights(f"timm:deit_tiny_distilled_patch16_224:{tmp_path / 'vit.safetensors'}")
    with pytest.raises(WeightsError, match="no model 'vit_tinny'"):
        read_weights(f"timm:vit_tinny:{tmp_path / 'vit.safetensors'}")
    with pytest.raises(WeightsError, match="no ViT"):
        read_weights(f"timm:resnet18:{tmp_path / 'vit.safetensors'}")
    with pytest.raises(WeightsError, match="timm:NAME:FILE"):
        read_weights("timm:vit_tiny_patch16_224")


def test_a_folder_that_timm_reads(tmp_path):
    save_file(small_vit().state_dict(), tmp_path / "model.safetensors")
    args = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit_small_patch16_224", "model_args": args})
    )
    assert read_weights(tmp_path).num_heads == 2


@pytest.mark.parametrize("legacy", [False, True])
def test_files_as_the_authors_of_mae_save_them(tmp_path, legacy):
    """Weights beside optimizer, arguments, a gradient scaler and a score; nothing of these is made."""
    arguments = argparse.Namespace(
        model="mae_vit_base_patch16", lr=1e-3, output_dir=Path("out"), resume=None, betas=(0.9, 0.95)
    )
    model = small_vit()
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    content = {
        "model": mae_state(), "optimizer": optimizer, "epoch": 799, "scaler": {"scale": 65536.0, "growth": 2},
        "args": arguments, "loss": np.float64(0.4), "history": np.arange(3.0), "place": np.int64(7),
    }  # fmt: skip
    torch.save(content, tmp_path / "mae.pth", _use_new_zipfile_serialization=not legacy)
    source = read_weights(tmp_path / "mae.pth")
    assert source.state.keys() == mae_state().keys()
    assert source.left.keys() == content.keys() - {"model"}
    report = initialize(small_model(), source)
    assert "args" in report.names(Outcome.ignored)
    held = load_tensors(tmp_path / "mae.pth")
    assert type(held["args"]).__name__ == "_StandIn"  # not even an argparse.Namespace
    assert not vars(held["args"])


def test_inert_names_lend_nothing_to_a_hostile_file(tmp_path):
    """Their arguments are read by the same rules, and what they are put in front of is never called."""
    trace = tmp_path / "ran"
    arguments = argparse.Namespace(payload=Hostile(trace))
    torch.save({"model": mae_state(), "args": arguments}, tmp_path / "bad.pth")
    with pytest.raises(UnsafeFileError, match=r"posix\.system"):
        read_weights(tmp_path / "bad.pth")
    for kind in (Path, argparse.Namespace):
        torch.save({"args": Calls(getattr, kind, "touch")}, tmp_path / "bad.pth")
        with pytest.raises(UnsafeFileError, match="getattr"):
            read_weights(tmp_path / "bad.pth")
    assert not trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, legacy, wrapped):
    trace = tmp_path / "ran"
    state = {"patch_embed.proj.weight": torch.zeros(2), "payload": Hostile(trace)}
    content = {"model": state, "epoch": 1} if wrapped else state
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeFileError, match=r"refused: .*posix\.system.*Nothing of it was run"):
        read_weights(tmp_path / "bad.pth")
    assert not trace.exists()


def test_a_hostile_deepspeed_folder_runs_nothing(tmp_path):
    folder = tmp_path / "global_step1"
    folder.mkdir()
    torch.save({"module": {"a": Hostile(tmp_path / "ran")}}, folder / "mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text("global_step1")
    with pytest.raises(UnsafeFileError):
        read_weights(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_files_of_something_else_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.pth can't be read"):
        read_weights(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(WeightsError, match="as safetensors"):
        read_weights(tmp_path / "text.safetensors")
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no kind that is known"):
        read_weights(tmp_path / "other.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(WeightsError, match="plain mapping of names to tensors: epoch is none"):
        read_weights(tmp_path / "epoch.pth")
    torch.save({"net": {"fc.weight": torch.zeros(2)}, "epoch": 3}, tmp_path / "net.pth")
    with pytest.raises(
        WeightsError, match="are none; if the weights are those under 'net', save these alone"
    ):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = {f"encoder.{name}": value.clone() for name, value in small_model().encoder.state_dict().items()}
    name = list(state)[-1]
    state[name].view(-1)[1] = value
    save_described(tmp_path / "model.safetensors", state, Description(CONFIG))
    out = tmp_path / "out.safetensors"
    with pytest.raises(WeightsError, match=f"{name} in the file has values that are not finite"):
        convert(str(tmp_path / "model.safetensors"), out, "earsight")
    assert not out.exists()
    assert "allowed: not all of it is finite there" in convert(
        str(tmp_path / "model.safetensors"), out, "earsight", [name]
    )


def test_changed_weights_do_not_pass_for_those_described(tmp_path):
    state = {f"encoder.{name}": value for name, value in small_model().encoder.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_described(path, state, Description(CONFIG))
    assert read_weights(path).config == CONFIG
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        read_weights(path)


@pytest.fixture(scope="module")
def zero_folders(tmp_path_factory) -> Path:
    """``ours0`` … ``ours2``: runs of ours by ZeRO stage; ``bf16_0`` … ``bf16_2``: others' in half precision."""
    folder = tmp_path_factory.mktemp("zero")
    ours = [{"run": str(folder / f"ours{stage}"), "steps": 1, "zero_stage": stage} for stage in (0, 1, 2)]
    foreign = [{"folder": str(folder / f"bf16_{stage}"), "stage": stage} for stage in (0, 1, 2)]
    run_ranks("support.foreign:zero_folders", 2, ours=ours, foreign=foreign)
    return folder


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_zero_folders_of_every_stage_hold_the_same_weights(tmp_path, zero_folders, stage):
    checkpoint = zero_folders / f"ours{stage}" / "checkpoints" / "step_00000001"
    assert locate(checkpoint / "deepspeed") == checkpoint / "model.safetensors"
    plain = load_file(checkpoint / "model.safetensors")
    shutil.copytree(checkpoint / "deepspeed", tmp_path / "tag")
    (tmp_path / "latest").write_text("tag")
    for folder in (tmp_path, tmp_path / "tag"):
        found = read_weights(folder)
        assert found.path.name == "mp_rank_00_model_states.pt"
        assert found.state.keys() == plain.keys()
        assert all(torch.equal(found.state[name], value) for name, value in plain.items())


@pytest.mark.parametrize("stage", [1, 2])
def test_half_precision_zero_folders_give_the_float32_weights(zero_folders, stage):
    found = read_file(locate(zero_folders / f"bf16_{stage}")).tensors
    expected = load_file(zero_folders / f"bf16_{stage}" / "expected.safetensors")
    assert found.keys() == expected.keys() | {"1.bias", "grid"}  # not in the optimizer: frozen, and a buffer
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in expected.values())


def test_rounded_weights_are_taken_as_such_where_there_are_no_others(zero_folders, tmp_path):
    stage_0 = read_file(locate(zero_folders / "bf16_0"))
    states = zero_folders / "bf16_2" / "global_step2" / "mp_rank_00_model_states.pt"
    shutil.copy(states, tmp_path)
    for file in (stage_0, read_file(tmp_path / states.name)):
        assert "bfloat16" in file.precision
        value = file.tensors["0.weight"]
        assert torch.equal(value, value.bfloat16().float())


def test_float32_partitions_that_do_not_belong_are_an_error(zero_folders, tmp_path):
    first, second = (zero_folders / f"bf16_{stage}" / "global_step2" for stage in (1, 2))
    names = sorted(path.name for path in second.glob("*_optim_states.pt"))
    shutil.copy(second / "mp_rank_00_model_states.pt", tmp_path)
    shutil.copy(second / names[0], tmp_path)
    with pytest.raises(WeightsError, match=r"has 1 files .* written by 2 ranks"):
        read_file(locate(tmp_path))
    for name in names:
        shutil.copy(first / name, tmp_path)
    with pytest.raises(
        WeightsError, match=r"are not those of mp_rank_00_model_states\.pt: 0\.weight is another"
    ):
        read_file(locate(tmp_path))
    torch.save({"optimizer_state_dict": {"partition_count": 2}}, tmp_path / names[0])
    with pytest.raises(WeightsError, match=r"can't be merged"):
        read_file(locate(tmp_path))
    torch.save({"optimizer_state_dict": Hostile(tmp_path / "ran")}, tmp_path / names[1])
    with pytest.raises(UnsafeFileError, match=r"optim_states\.pt is refused"):
        read_file(locate(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_zero_3_and_model_parallel_folders_are_refused(tmp_path):
    for name in ("zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"):
        (tmp_path / name).touch()
        with pytest.raises(WeightsError, match="ZeRO 3" if name.startswith("zero") else "model-parallel"):
            read_weights(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(WeightsError, match="no folder in it"):
        read_weights(tmp_path)


def test_half_precision_is_told(tmp_path):
    state = {name: value.bfloat16() for name, value in mae_state().items()}
    torch.save(state, tmp_path / "half.pth")
    source = read_weights(tmp_path / "half.pth")
    assert source.state["blocks.0.attn.proj.weight"].dtype == torch.float32
    assert "holds bfloat16 numbers" in initialize(small_model(), source).notes[0]
