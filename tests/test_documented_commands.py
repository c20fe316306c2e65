"""Every command of README and docs: the programs are there, and take what is written.

Commands stand in blocks of ``bash`` or between backticks. They are tried in a folder where the names they use exist,
with tiny data and a tiny model. Those in `EXECUTED` are run. The others, which need a cluster, GPUs or minutes, are
followed up to their parsed command line; training commands up to their config and the division of their batch. Commands
of other programs have to be named in `OTHERS`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import pytest
from support.shards import make_shards
from support.videos import write_video

from engine.config import PretrainConfig, RunConfig, parse_config
from engine.self_training import SelfTrainingConfig
from engine.tasks.finetune_config import FinetuneConfig, LabelledConfig
from launch.config import LaunchConfig, launch_config, launch_parser
from models import create_model
from models.convert import save_published
from models.weights.tensor_files import write_safetensors

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Programs that are run, with what is added to keep them quick, and how often at most.
EXECUTED: dict[str, tuple[list[str], int]] = {
    "datasets.prepare": (["--num_workers", "1"], 1),
    "datasets.check": (["--num_workers", "1"], 1),
    "datasets.stats": (["--clips", "2", "--shown", "1"], 1),
    "engine.embed": (["--num_workers", "0", "--batch_size", "2"], 1),
    "models.export": ([], 1),
    "models.convert": ([], 2),
    "launch.submit": (["--dry_run"], 9),
}
#: Training programs, whose whole command line is a config.
TRAINING: dict[str, type[RunConfig]] = {
    "main_pretrain.py": PretrainConfig,
    "main_finetune.py": LabelledConfig,
    "engine.self_training": SelfTrainingConfig,
}
#: Programs that are not ours: the shell's, downloads, and what only lists or installs.
OTHERS = {
    "source", "mkdir", "cd", "cat", "curl", "for", "grep", "jq", "tensorboard", "export", "until", "srun", "pip",
    "scancel", "sbatch", "salloc", "scontrol", "sinfo", "dmesg", "sacct",
}  # fmt: skip
#: Options of torchrun that take a value.
TORCHRUN = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_id", "--rdzv_endpoint"}
SMALL = {"image_size": 32, "audio_length": 64, "patch_size": 8}


class ParsedError(Exception):
    """A program's command line was parsed; the program goes no further."""


@dataclass(frozen=True)
class Command:
    document: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


def commands() -> Iterator[Command]:
    for path in DOCUMENTS:
        fence, pending, start = "", "", 0
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.strip().startswith("```"):
                assert not pending, f"{path.name}:{number}: the block ends within a command"
                fence = "" if fence else line.strip().removeprefix("```") or "text"
            elif fence == "bash":
                start = start if pending else number
                pending = f"{pending}{line.strip()}"
                if pending.endswith("\\"):
                    pending = f"{pending[:-1]} "
                elif line.strip() != "done" and ("\n" in pending or pending.endswith(" do")):
                    pending += "\n"  # a loop of the shell is one command
                else:
                    if pending.strip() and not pending.startswith("#"):
                        yield Command(path.name, start, pending)
                    pending = ""
            elif fence:
                assert not line.startswith(("python ", "torchrun ")), f"{path.name}:{number}: a block of bash"
            else:
                for span in re.findall(r"`((?:python|torchrun|make) [^`]*)`", line):
                    yield Command(path.name, number, span)


def world(folder: Path) -> None:
    """The names that the documents use, with little behind them."""
    clips = make_shards(folder / "clips", 6, 3, frames=2)
    (folder / "VIDEOS").mkdir()
    write_video(folder / "VIDEOS" / "one.mp4", seconds=1.2)
    for name in ("SHARDS", "data/shards/test", "data/audioset/eval"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(clips)
    words = ["data.train=SHARDS", "model.name=cav_mae_tiny", *(f"model.{k}={v}" for k, v in SMALL.items())]
    _, text = parse_config(PretrainConfig, "test", words)
    run = folder / "run"
    checkpoint = run / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    model = create_model("cav_mae_tiny", **SMALL)
    write_safetensors(checkpoint / "model.safetensors", model.state_dict())
    (checkpoint / "state.json").write_text(json.dumps({"step": 2}))
    for place in (run, checkpoint):
        (place / "config.yaml").write_text(text)
    for name in ("RUN", "runs/pretrain", "runs/cav_mae_base", "runs/demo/pretrain", "runs/demo/mavil"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(run)
    _, text = parse_config(FinetuneConfig, "test", ["data.train=SHARDS", "data.val=SHARDS", f"init={run}"])
    (folder / "runs" / "finetune_vggsound").mkdir()
    (folder / "runs" / "finetune_vggsound" / "config.yaml").write_text(text)
    published = create_model(
        "cav_mae_small", image_size=32, audio_length=64, modality_depth=1, embed_dim=64, num_heads=1,
        decoder_embed_dim=32, decoder_num_heads=1, decoder_depth=1,
    )  # fmt: skip
    for name in ("cav-mae-base.pth", "cav-mae-scale++.pth"):
        save_published(published, folder / name)
    (folder / "launch.yaml").write_text((ROOT / "configs" / "launch" / "slurm_4x8.yaml").read_text())
    for name in ("configs", "main_pretrain.py", "main_finetune.py", "benchmarks", "examples", "launch"):
        (folder / name).symlink_to(ROOT / name)


def check(command: Command, executed: Counter[str]) -> None:
    """Runs a command, or checks it as far as `EXECUTED` says."""
    if "\n" in command.text or re.match(r"\w+=\S*$", command.text):
        assert command.text.split()[0] in OTHERS or "=" in command.text.split()[0], command.place
        return
    words = shlex.split(command.text, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command.place
        return
    if words[0] not in ("python", "torchrun"):
        assert words[0] in OTHERS, f"{command.place}: not a command that is known"
        return
    processes, words = _program(words)
    program = words[0]
    if len(words) == 1 or any("…" in word for word in words):  # in a sentence: something is left out
        _exists(program, command)
    elif program in TRAINING:
        _check_training(words, processes, command)
    elif program == "venv":
        pass
    else:
        _run(program, words[1:], command, executed)


def _program(words: list[str]) -> tuple[int, list[str]]:
    """The number of processes, and the program with its arguments, without ``python`` or ``torchrun``."""
    runner, *words = words
    processes = 1
    if runner == "torchrun":
        while words and words[0].startswith("--"):
            option = words.pop(0)
            if option in TORCHRUN:
                value = words.pop(0)
                if option in ("--nproc_per_node", "--nnodes"):
                    processes *= int(value)
            else:
                assert option == "--standalone", option
    if words[0] == "-m":
        return processes, words[1:]
    return processes, words


def _check_training(words: list[str], processes: int, command: Command) -> None:
    program, *rest = words
    if not rest:
        return
    config, _ = parse_config(
        TRAINING[program], program, [*rest, *(() if _names_data(rest) else ("data.train=x",))]
    )
    config.train.parallel.micro_batch_size(processes)
    assert config.data.train, command.place


def _names_data(words: list[str]) -> bool:
    return any("data.train" in word or word == "--config" for word in words)


def _exists(program: str, command: Command) -> None:
    path = ROOT / (program if program.endswith(".py") else program.replace(".", "/"))
    assert path.is_file() or path.is_dir() or path.with_suffix(".py").is_file(), command.place


def _run(program: str, words: list[str], command: Command, executed: Counter[str]) -> None:
    cut = words.index("--") if "--" in words else len(words)
    own, training = words[:cut], words[cut + 1 :]
    if program == "launch.preflight":
        program = "engine.preflight"  # its own parser takes every option
    if training:
        if program == "launch.submit":
            flags = ("--dry_run", "--wait")
            launch = launch_config(launch_parser().parse_args([word for word in own if word not in flags]))
        else:
            nodes, processes = (int(own[own.index(name) + 1]) for name in ("--nodes", "--processes"))
            launch = LaunchConfig(nodes=nodes, gpus_per_node=processes)
        _check_training(training, launch.nodes * launch.processes, command)
    more, times = EXECUTED.get(program, ([], 0))
    sources = [word for word in own if not word.startswith("-")]
    ready = (
        bool(sources) and Path(sources[0]).exists() and (sources[1:] == [] or not Path(sources[-1]).exists())
    )
    execute = executed[program] < times and (bool(training) or ready)
    if execute:
        executed[program] += 1
    more = [word for word in more if word not in own] if execute else []
    arguments = [*own, *more, *(["--", *training] if training else [])]
    main = _main_of(program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        if not execute:
            for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
                patch.setattr(kind, "parse_args", _stopping(kind.parse_args))
        try:
            status = main()
        except ParsedError:
            return
        except SystemExit as end:
            if end.code:
                raise
            return
        assert execute, f"{command.place}: went on without parsing its command line"
        assert not status, f"{command.place}: exit status {status}"


def _main_of(program: str) -> Callable[[], int | None]:
    """The function that ``python -m PROGRAM`` or ``python PROGRAM.py`` runs."""
    name = program.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name)
    return (importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module).main


def _stopping(parse: Any) -> Any:
    def parse_and_stop(parser: Any, *arguments: Any, **keywords: Any) -> NoReturn:
        parse(parser, *arguments, **keywords)
        raise ParsedError

    return parse_and_stop


def test_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(tmp_path)
    monkeypatch.chdir(tmp_path)
    executed: Counter[str] = Counter()
    problems = []
    for command in commands():
        try:
            check(command, executed)
        except (SystemExit, AssertionError, ValueError, ImportError, AttributeError) as error:
            problems.append(f"{command.place}\n  {type(error).__name__}: {error}")
    assert not problems, "\n".join(problems)
    assert set(executed) == set(EXECUTED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("python -m datasets.prepare VIDEOS out --lables x.csv", "2"),
        ("python main_pretrain.py --config configs/absent.yaml", "2"),
        ("python main_pretrain.py --config configs/pretrain_cav_mae_base.yaml train.stps=1", "2"),
        (
            "torchrun --nproc_per_node 32 main_pretrain.py --config configs/pretrain_cav_mae_base.yaml",
            "divided",
        ),
        ("python -m engine.absent RUN", "absent"),
        ("flac --best x.wav", "not a command that is known"),
    ],
)
def test_a_command_that_would_fail_fails_here(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("configs", "main_pretrain.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, SystemExit, ValueError, ImportError), match=reason):
        check(Command("x.md", 1, text), Counter())


def test_commands_are_found() -> None:
    found = list(commands())
    assert len(found) > 60
    assert {command.document for command in found} > {
        "README.md",
        "data.md",
        "finetune.md",
        "weights.md",
        "cluster.md",
    }
