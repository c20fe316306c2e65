"""What a start is worth on the generated world: the fine-tuning part of ``make demo``.

    python -m engine.demo.finetuning --shards SHARDS --out OUT [--init RUN] [--overrides model.name=…]

With few labelled clips and over several seeds, a model is fine-tuned by sound, by picture and by both, from a
pretraining run or, without ``--init``, from scratch at equal budget, either with a head fitted first; and a linear
probe measures its frozen features (from scratch those of a random encoder). One process does it all, one run after
the other; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atomic import write_atomically
from engine.config import parse_config
from engine.evaluation.final import FinalEvaluation
from engine.objectives.classification import Modalities
from engine.parallel.world import World, distributed
from engine.records.runlog import setup_console
from engine.tasks.classifier_task import build_classification
from engine.tasks.finetune import finetune
from engine.tasks.finetune_config import FinetuneConfig
from engine.tasks.labelled_sets import open_training_sets
from home_paths import command_line
from terminal import show_control_characters

_CONFIG = "configs/finetune_tiny.yaml"
#: The model of a run from scratch; with ``init`` it is that one's.
_MODEL = ("model.name=cav_mae_tiny", "model.image_size=96", "model.audio_length=208")


def finetune_demo(
    init: Path | None,
    shards: Path,
    out: Path,
    world: World,
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains and measures everything, or what is left of it.

    Args:
        init: The pretraining run, or None to begin from scratch.
        shards: The demo's shards, with ``train``, ``val`` and ``test``.
        out: Where the runs go.
        world: The processes; every rank calls this.
        seeds: Of the clips chosen, their order and augmentation, and the weights from scratch.
        overrides: Of the recipe, such as ``model.name=…`` for a run of another family.

    Returns:
        ``labelled_clips``; ``accuracy[modality]``, a top-1 for each seed; ``frozen_features``, of the first seed.
    """
    fbank = json.loads((shards / "train" / "index.json").read_text(encoding="utf-8"))["fbank"]
    base = [
        f"data.val={shards}/val", f"evaluation.shards={shards}/test",
        f"fbank.mean={fbank['mean']:.4f}", f"fbank.std={fbank['std']:.4f}",
        *([f"init={init}"] if init is not None else _MODEL),
        *overrides,
    ]  # fmt: skip
    tuned = [f"data.train={shards}/train", *base]
    accuracy = {
        str(modality): [_accuracy(out, world, tuned, modality, seed) for seed in seeds]
        for modality in Modalities
    }
    # Fitted on the smaller held-out set: each of its clips is embedded, with all of its patches.
    frozen = _frozen_features(out / "probe", world, [f"data.train={shards}/val", *base])
    config, _ = _config(tuned, out)
    return {
        "labelled_clips": config.sampling.max_clips,
        "accuracy": accuracy,
        "frozen_features": frozen,
    }


def _accuracy(out: Path, world: World, base: list[str], modality: Modalities, seed: int) -> float:
    run = out / f"{modality}_{seed}"
    report = run / "evaluation" / "last" / "metrics.json"
    if not report.is_file():
        config, text = _config([*base, f"objective.modalities={modality}", f"seed={seed}"], run)
        if not finetune(config, text, world):
            raise SystemExit("stopped on request; run the same command again to go on")
    value = json.loads(report.read_text(encoding="utf-8"))["results"][str(modality)]["top1"]
    if world.is_main:
        print(f"{out.name}, {modality}, seed {seed}: accuracy {value:.1%}", flush=True)
    return value


def _frozen_features(run: Path, world: World, base: list[str]) -> dict[str, float]:
    report = run / "evaluation" / "init" / "metrics.json"
    if not report.is_file():
        config, text = _config(base, run)
        train = open_training_sets(config)[0]
        objective = build_classification(config, train).to(world.device)
        FinalEvaluation(config, train, world, run, 0, text)(objective, "init", classify=False)
    return json.loads(report.read_text(encoding="utf-8"))["frozen_features"]


def _config(overrides: list[str], run: Path) -> tuple[FinetuneConfig, str]:
    return parse_config(
        FinetuneConfig, "engine.demo.finetuning", ["--config", _CONFIG, f"output_dir={run}", *overrides]
    )


def main() -> None:
    """Entry point of ``python -m engine.demo.finetuning``; its results are ``OUT/results.json``."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m engine.demo.finetuning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--init", type=Path, help="the pretraining run; from scratch without")
    parser.add_argument("--shards", type=Path, required=True, help="the demo's shards")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument(
        "--overrides", nargs="*", default=(), help="of the recipe, such as model.name=equiav_tiny"
    )
    options = parser.parse_args(command_line())
    with distributed() as world:
        setup_console(is_main=False)  # the runs' own lines would be a flood
        try:
            results = finetune_demo(
                options.init, options.shards, options.out, world, options.seeds, options.overrides
            )
        except ValueError as error:
            parser.exit(1, f"error: {error}\n")
        if world.is_main:
            write_atomically(options.out / "results.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
