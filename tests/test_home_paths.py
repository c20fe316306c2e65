"""``~`` and ``$HOME`` mean the same everywhere."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

import pytest
from support.source_files import ROOT, sources

from atomic import check_writable
from datasets.stats import main as stats
from engine.config import PretrainConfig, parse_config
from engine.objectives.classification import LossName, Modalities
from engine.tasks.finetune_config import FinetuneConfig
from home_paths import command_line, expand_home, expand_values
from launch.config import launch_config, launch_parser
from launch.training import plan_runs


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/a", "/home/me/a"),
        ("~", "/home/me"),
        ("$HOME/a", "/home/me/a"),
        ("${HOME}/a", "/home/me/a"),
        ("output_dir=~/a", "output_dir=/home/me/a"),
        ("--data.train=$HOME/a", "--data.train=/home/me/a"),
        ("timm:vit_base.mae:~/a", "timm:vit_base.mae:/home/me/a"),
        ("init=timm:vit_base.mae:~/a", "init=timm:vit_base.mae:/home/me/a"),
        ("a~/b", "a~/b"),
        ("a/~", "a/~"),
        ("$HOMES/a", "$HOMES/a"),
        ("decoder.*", "decoder.*"),
    ],
)
def test_expansion(monkeypatch, text: str, expanded: str):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(text) == expanded
    assert command_line([text]) == [expanded]
    assert expand_values({"a": [{"b": text}], "c": 1}) == {"a": [{"b": expanded}], "c": 1}


def test_config_files_and_command_lines(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("output_dir: ~/runs/y\ndata: {train: $HOME/set, val: '${HOME}/val'}\n")
    config, text = parse_config(
        PretrainConfig, "program", ["--config", "~/run.yaml", "data.cache_dir=~/cache"]
    )
    assert config.output_dir == f"{tmp_path}/runs/y"
    assert (config.data.train, config.data.val) == (f"{tmp_path}/set", f"{tmp_path}/val")
    assert config.data.cache_dir == f"{tmp_path}/cache"
    assert "~" not in text
    (tmp_path / "sets.yaml").write_text("data: {train: [{path: ~/a}, {path: $HOME/b, weight: 2}]}\n")
    config, text = parse_config(PretrainConfig, "program", ["--config", str(tmp_path / "sets.yaml")])
    assert [part.path for part in config.data.train] == [f"{tmp_path}/a", f"{tmp_path}/b"]  # type: ignore[union-attr]
    assert "~" not in text
    with pytest.raises(SystemExit, match=f"{tmp_path}/nothing"):
        stats(["~/nothing"])


def test_launch_files(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.yaml").write_text("output_dir: ~/runs/y\n")
    (tmp_path / "main.py").touch()
    launch = tmp_path / "launch.yaml"
    launch.write_text(
        "python: singularity exec $HOME/image.sif python\nenvironment: {TORCH_HOME: ~/cache}\n"
        "setup: [source ~/env/bin/activate]\n"
    )
    config = launch_config(launch_parser().parse_args(["--config", str(launch)]))
    assert config.python == "singularity exec /home/me/image.sif python"
    assert config.environment == {"TORCH_HOME": "/home/me/cache"}
    assert config.setup == ["source ~/env/bin/activate"]  # bash's part, on the node
    (run,) = plan_runs(["main.py", "--config", "run.yaml"], "name", [], [], tmp_path)
    assert run.output_dir == Path("/home/me/runs/y")


def test_every_program_begins_with_its_command_line():
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if re.search(r"\.parse_(known_)?args\(", text):
            assert "command_line(" in text, path


def dangling(folder: Path) -> tuple[Path, str]:
    (folder / "out").symlink_to(folder / "gone" / "nowhere")
    return folder / "out", f"{folder / 'out'} is a symbolic link that leads nowhere"


def below_a_file(folder: Path) -> tuple[Path, str]:
    (folder / "file").touch()
    return folder / "file" / "out", "Not a directory"


def read_only(_: Path) -> tuple[Path, str]:
    return Path("/proc/self/out"), "No such file or directory"  # what procfs says of new folders


PROGRAMS = {
    "datasets.prepare.run": ["IN", "OUT/set"],
    "datasets.synthetic.world": ["OUT/world"],
    "engine.demo.run": ["--data", "OUT/data", "--run", "IN/run"],
    "engine.embed.run": ["IN", "IN", "OUT/vectors.npz"],
    "engine.ground.run": ["IN", "IN/video.mp4", "OUT/film.mp4"],
    "engine.ground.measure": ["IN", "IN", "--json", "OUT/scores.json"],
    "models.convert": ["IN", "OUT/model.safetensors"],
    "models.export.formats": ["IN", "OUT/exported"],
    "use_encoders": ["IN", "IN", "OUT/page.html"],
}


@pytest.mark.parametrize("place", [dangling, below_a_file, read_only])
def test_folders_that_can_t_be_written_to_are_said_in_a_line_at_the_start(
    tmp_path: Path, monkeypatch, capsys, place
):
    out, reason = place(tmp_path)
    (tmp_path / "in").mkdir()
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name, words in PROGRAMS.items():
        given = [word.replace("IN", str(tmp_path / "in")).replace("OUT", str(out)) for word in words]
        monkeypatch.setattr("sys.argv", ["program", *given])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(name).main()
        said = capsys.readouterr().err + str(ended.value.code)
        assert f"can't be written to: {reason}" in said, (name, said)
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_writable(out)
    check_writable(tmp_path / "new" / "folder")
    assert not any((tmp_path / "new" / "folder").iterdir())


def test_members_of_enumerations_stay_what_they_are():
    """A plain text in the place of one is another value to whoever compares by identity."""
    config, _ = parse_config(FinetuneConfig, "test", ["data.train=~/set", "output_dir=run"])
    assert config.data.train == os.path.expanduser("~/set")
    assert config.objective.modalities is Modalities.audio_visual
    assert config.objective.loss is LossName.bce
