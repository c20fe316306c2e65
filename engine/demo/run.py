"""``make demo``: the whole way on generated data, on a laptop.

Generated videos → shards → pretraining → fine-tuning → exported weights, and what was learned in one summary. It runs
the same programs as a real run, one after the other, and can be interrupted and run again: every part goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

from atomic import check_writable, write_atomically
from engine.records.runlog import read_metrics
from home_paths import command_line
from terminal import show_control_characters

_CONFIG = "configs/pretrain_cav_mae_tiny.yaml"
STARTS = ("scratch", "pretrained")


def main() -> None:
    """Runs the demo and prints its summary."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m engine.demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="where videos and shards go")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="where the runs go")
    parser.add_argument(
        "--clips", type=int, nargs=3, default=(1200, 250, 500), metavar=("TRAIN", "VAL", "TEST")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of fine-tuning")
    parser.add_argument(
        "overrides", nargs="*", help="config overrides for pretraining, such as train.steps=20"
    )
    options = parser.parse_args(command_line())
    try:
        for folder in (options.data, options.run):
            check_writable(folder)
    except ValueError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    started = time.monotonic()
    make_shards(options.data, options.clips)
    pretrain(options.data, options.run / "pretrain", options.overrides)
    finetuned = finetune(options.data, options.run, options.seeds)
    export(options.run)
    summary = summarize(options.run / "pretrain", options.data, time.monotonic() - started)
    summary["finetuning"] = finetuned
    write_atomically(options.run / "summary.json", json.dumps(summary, indent=1) + "\n")
    report(options.run, options.seeds[0])
    print(render(summary, options.run))


def make_shards(data: Path, clips: tuple[int, int, int]) -> None:
    """Generates the videos and prepares shards from them, each unless it is there already."""
    world, shards = data / "world", data / "shards"
    film = ["--seconds", "2", "--fps", "6"]
    counts = [
        word for pair in zip(("--train", "--val", "--test"), map(str, clips), strict=True) for word in pair
    ]
    _run("generating videos", ["-m", "datasets.synthetic", str(world), *counts, *film])
    labels = ["--labels", str(world / "labels.csv")]
    sizes = ["--media.shorter_side", "96", "--media.num_frames", "5", "--shard_megabytes", "16"]
    _run("preparing shards", ["-m", "datasets.prepare", str(world), str(shards), *labels, *sizes])


def pretrain(data: Path, run: Path, overrides: list[str]) -> None:
    """Pretrains on the demo's shards."""
    fbank = json.loads((data / "shards" / "train" / "index.json").read_text(encoding="utf-8"))["fbank"]
    command = [
        "main_pretrain.py", "--config", _CONFIG, f"output_dir={run}",
        f"data.train={data}/shards/train", f"data.val={data}/shards/val",
        f"fbank.mean={fbank['mean']:.4f}", f"fbank.std={fbank['std']:.4f}", *overrides,
    ]  # fmt: skip
    _run("pretraining", command)


def finetune(data: Path, run: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Fine-tunes with few labels, from the pretraining run and from scratch side by side; returns its summary."""
    folders = {start: run / "finetune" / start for start in STARTS}
    common = ["-m", "engine.demo.finetuning", "--shards", str(data / "shards"), "--seeds", *map(str, seeds)]
    commands = {start: [*common, "--out", str(folder)] for start, folder in folders.items()}
    commands["pretrained"] += ["--init", str(run / "pretrain")]
    # Small steps gain little from a second thread, and nothing from two processes that each want every core.
    threads = str(max(1, len(os.sched_getaffinity(0)) // len(STARTS)))
    _run("fine-tuning, pretrained and from scratch", *commands.values(), OMP_NUM_THREADS=threads)
    results = {
        start: json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for start, folder in folders.items()
    }
    classes = len(
        json.loads((data / "shards" / "train" / "index.json").read_text(encoding="utf-8"))["labels"]
    )
    return {
        "chance": 1 / classes,
        "labelled_clips": results["pretrained"]["labelled_clips"],
        "seeds": list(seeds),
        "accuracy": {
            modality: {start: results[start]["accuracy"][modality] for start in STARTS}
            for modality in results["pretrained"]["accuracy"]
        },
        "frozen_features": {start: results[start]["frozen_features"] for start in STARTS},
    }


def export(run: Path) -> None:
    """Exports the pretrained encoders: one file of Earsight's own, and folders that timm opens."""
    folders = {name: run / "export" / name for name in ("earsight", "timm")}
    commands = [
        ["-m", "models.export", str(run / "pretrain"), str(folder), "--format", name]
        for name, folder in folders.items()
        if not folder.exists()
    ]
    if commands:
        _run("exporting", *commands)


def report(run: Path, seed: int) -> None:
    """One page that shows the pretraining run, and fine-tuning from it with one of the seeds."""
    runs = [run / "pretrain", run / "finetune" / "pretrained" / f"audio_visual_{seed}"]
    command = ["-m", "engine.report", *map(str, runs), str(run / "report.html"), "--clips", "32"]
    _run("writing the report", command)


def summarize(run: Path, data: Path, seconds: float) -> dict[str, Any]:
    """What the run's metrics say, untrained against trained.

    Args:
        run: The pretraining run.
        data: The demo's data.
        seconds: Time the demo took.
    """
    records = read_metrics(run)
    training = [record for record in records if "train/loss" in record]
    held_out = [record for record in records if "val/retrieval_a2v_r1" in record]
    first, last = held_out[0], held_out[-1]
    names = [name for name in last if name.startswith("val/")]
    train = json.loads((data / "shards" / "train" / "index.json").read_text(encoding="utf-8"))
    return {
        "what": "a tiny model on a generated world: shows that everything works, says nothing about real video",
        "training_clips": train["samples"],
        "steps": last["step"],
        "seconds": round(seconds, 1),
        "samples_per_second": round(
            sorted(r["train/samples_per_second"] for r in training)[len(training) // 2], 1
        ),
        "loss_first": training[0]["train/loss"],
        "loss_last": training[-1]["train/loss"],
        "untrained": {name.removeprefix("val/"): first[name] for name in names},
        "trained": {name.removeprefix("val/"): last[name] for name in names},
    }


def render(summary: dict[str, Any], folder: Path) -> str:
    """The summary for a person."""
    lines = [
        "",
        f"Earsight demo: {summary['what']}.",
        f"{summary['training_clips']} clips, {summary['steps']} steps, {summary['samples_per_second']} samples/s, "
        f"{summary['seconds'] / 60:.1f} min in all; loss {summary['loss_first']:.3f} → {summary['loss_last']:.3f}",
        "",
        f"{'held-out retrieval':28}{'chance':>9}{'untrained':>11}{'trained':>9}",
    ]
    for direction, title in (("a2v", "sound → picture"), ("v2a", "picture → sound")):
        for k in (1, 5, 10):
            values = (
                summary["trained"][f"retrieval_chance_r{k}"],
                summary["untrained"][f"retrieval_{direction}_r{k}"],
                summary["trained"][f"retrieval_{direction}_r{k}"],
            )
            chance, untrained, trained = (f"{100 * value:.1f} %" for value in values)
            lines.append(f"  {title + f'  R@{k}':26}{chance:>9}{untrained:>11}{trained:>9}")
    lines += ["", *render_finetuning(summary["finetuning"])]
    lines += [
        "",
        f"weights      {folder}/pretrain/checkpoints/, exported to {folder}/export/",
        f"pictures     {folder}/pretrain/pictures/",
        f"TensorBoard  tensorboard --logdir {folder}",
        f"summary      {folder}/summary.json",
        f"report       {folder}/report.html: curves, pictures and sounds of these runs on one page",
    ]
    return "\n".join(lines)


def render_finetuning(summary: dict[str, Any]) -> list[str]:
    """The fine-tuning summary for a person."""
    seeds = "one seed" if len(summary["seeds"]) == 1 else f"mean ± spread of {len(summary['seeds'])} seeds"
    lines = [_row(f"accuracy (chance {summary['chance']:.1%})", "from scratch", "pretrained")]
    for name, values in summary["accuracy"].items():
        lines.append(_row(f"  fine-tuned, {name.replace('_', '-')}", *(_spread(values[s]) for s in STARTS)))
    for name in summary["accuracy"]:
        values = [summary["frozen_features"][start][f"linear_{name}_top1"] for start in STARTS]
        lines.append(_row(f"  linear probe, {name.replace('_', '-')}", *(f"{v:.1%}" for v in values)))
    lines.append(
        f"  (fine-tuned on {summary['labelled_clips']} labelled clips, {seeds}; "
        "the probe's scratch is a random encoder)"
    )
    return lines


def _row(title: str, *cells: str) -> str:
    return f"{title:28}" + "".join(f"{cell:>18}" for cell in cells)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1%}"
    return f"{mean} ± {statistics.stdev(values):.1%}" if len(values) > 1 else mean


def _run(title: str, *commands: list[str], **environment: str) -> None:
    """Runs Python commands side by side; where one fails, so does the demo, once all have ended."""
    print(f"— {title}", flush=True)
    processes = [Popen([sys.executable, *command], env=os.environ | environment) for command in commands]
    failed = [status for status in [process.wait() for process in processes] if status]
    if failed:
        raise SystemExit(f"{title} ended with status {failed[0]}")
