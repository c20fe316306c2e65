"""``make demo``: the whole way on generated data, on a laptop.

Generated videos → shards → pretraining → fine-tuning → exported weights, and what was learned in one summary. It runs
the same programs as a real run, one after the other, and can be interrupted and run again: every part goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.runlog import read_metrics, write_atomically

_CONFIG = "configs/pretrain_cav_mae_tiny.yaml"


def main() -> None:
    """Runs the demo and prints its summary."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="where videos and shards go")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="where the runs go")
    parser.add_argument(
        "--clips", type=int, nargs=3, default=(1200, 250, 250), metavar=("TRAIN", "VAL", "TEST")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="of fine-tuning")
    parser.add_argument(
        "overrides", nargs="*", help="config overrides for pretraining, such as train.steps=20"
    )
    options = parser.parse_args()
    started = time.monotonic()
    make_shards(options.data, options.clips)
    pretrain(options.data, options.run / "pretrain", options.overrides)
    finetuned = finetune(options.data, options.run, options.seeds)
    export(options.run)
    summary = summarize(options.run / "pretrain", options.data, time.monotonic() - started)
    summary["finetuning"] = finetuned
    write_atomically(options.run / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(render(summary, options.run))


def make_shards(data: Path, clips: tuple[int, int, int]) -> None:
    """Generates the videos and prepares shards from them, each unless it is there already."""
    world, shards = data / "world", data / "shards"
    film = ["--seconds", "2", "--fps", "6"]
    counts = [
        word for pair in zip(("--train", "--val", "--test"), map(str, clips), strict=True) for word in pair
    ]
    _run("generating videos", "-m", "datasets.synthetic", str(world), *counts, *film)
    labels = ["--labels", str(world / "labels.csv")]
    sizes = ["--media.shorter_side", "96", "--media.num_frames", "5", "--shard_megabytes", "16"]
    _run("preparing shards", "-m", "datasets.prepare", str(world), str(shards), *labels, *sizes)


def pretrain(data: Path, run: Path, overrides: list[str]) -> None:
    """Pretrains on the demo's shards."""
    fbank = json.loads((data / "shards" / "train" / "index.json").read_text())["fbank"]
    _run(
        "pretraining", "main_pretrain.py", "--config", _CONFIG, f"output_dir={run}",
        f"data.train={data}/shards/train", f"data.val={data}/shards/val",
        f"fbank.mean={fbank['mean']:.4f}", f"fbank.std={fbank['std']:.4f}", *overrides,
    )  # fmt: skip


def finetune(data: Path, run: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Fine-tunes with few labels, from the pretraining run and from scratch; returns its summary."""
    out = run / "finetune"
    _run(
        "fine-tuning, pretrained and from scratch", "-m", "engine.finetune_demo",
        "--init", str(run / "pretrain"), "--shards", str(data / "shards"), "--out", str(out),
        "--seeds", *map(str, seeds),
    )  # fmt: skip
    return json.loads((out / "finetune_summary.json").read_text())


def export(run: Path) -> None:
    """Exports the pretrained encoders: one file of Earsight's own, and folders that timm opens."""
    for name in ("earsight", "timm"):
        out = run / "export" / name
        if not out.exists():
            _run(
                f"exporting ({name})",
                "-m",
                "models.export",
                str(run / "pretrain"),
                str(out),
                "--format",
                name,
            )


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
    train = json.loads((data / "shards" / "train" / "index.json").read_text())
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
    ]
    return "\n".join(lines)


def render_finetuning(summary: dict[str, Any]) -> list[str]:
    """The fine-tuning summary for a person."""
    seeds = "one seed" if len(summary["seeds"]) == 1 else f"mean ± spread of {len(summary['seeds'])} seeds"
    lines = [
        f"{'accuracy (chance ' + format(summary['chance'], '.1%') + ')':28}{'from scratch':>18}{'pretrained':>18}"
    ]
    for name, values in summary["accuracy"].items():
        cells = [f"{values[s]['mean']:.1%} ± {values[s]['std']:.1%}" for s in ("scratch", "pretrained")]
        lines.append(f"  {'fine-tuned, ' + name.replace('_', '-'):26}{cells[0]:>18}{cells[1]:>18}")
    for name, values in summary["linear_probe"].items():
        cells = [f"{values[s]:.1%}" for s in ("scratch", "pretrained")]
        lines.append(f"  {'linear probe, ' + name.replace('_', '-'):26}{cells[0]:>18}{cells[1]:>18}")
    lines.append(
        f"  (fine-tuned on {summary['labelled_clips']} labelled clips, {seeds}; "
        "the probe's scratch is a random encoder)"
    )
    return lines


def _run(title: str, *arguments: str) -> None:
    print(f"— {title}", flush=True)
    status = subprocess.run([sys.executable, *arguments]).returncode
    if status:
        raise SystemExit(f"{title} ended with status {status}")


if __name__ == "__main__":
    main()
