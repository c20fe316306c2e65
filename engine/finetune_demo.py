"""What pretraining is worth on the generated world: the fine-tuning part of ``make demo``.

    python -m engine.finetune_demo --init RUN --shards SHARDS --out OUT

With few labelled clips and over several seeds, the pretrained model is fine-tuned and the same model trained from
scratch at equal budget, by sound, by picture and by both; and a linear probe of its frozen features is compared with
a random encoder's. One process does it all, one run after the other; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import parse_config
from engine.distributed import World, distributed
from engine.evaluation import FinalEvaluation
from engine.finetune import build_classification, finetune
from engine.finetune_config import FinetuneConfig
from engine.labelled import open_labelled
from engine.objectives.classification import Modalities
from engine.runlog import setup_console, write_atomically

_CONFIG = "configs/finetune_tiny.yaml"
STARTS = ("pretrained", "scratch")
#: The frozen streams whose linear probes are compared.
STREAMS = ("audio", "visual", "audio_visual")


def finetune_demo(
    init: Path,
    shards: Path,
    out: Path,
    world: World,
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains and measures everything, or what is left of it.

    Args:
        init: The pretraining run.
        shards: The demo's shards, with ``train``, ``val`` and ``test``.
        out: Where the runs go; the summary is ``finetune_summary.json`` in it.
        world: The processes; every rank calls this.
        seeds: Of the head, the clips chosen, their order, and the weights from scratch.
        overrides: Config overrides for every run.

    Returns:
        ``accuracy[modality][start]`` with ``mean``, ``std`` and each seed's top-1; ``linear_probe[stream][start]``
        likewise for one random encoder; ``chance``, ``clips`` and ``seconds``.
    """
    started = time.monotonic()
    fbank = json.loads((shards / "train" / "index.json").read_text())["fbank"]
    base = [
        f"data.train={shards}/train", f"data.val={shards}/val", f"evaluation.shards={shards}/test",
        f"fbank.mean={fbank['mean']:.4f}", f"fbank.std={fbank['std']:.4f}", *overrides,
    ]  # fmt: skip
    accuracy: dict[str, dict[str, Any]] = {}
    for modality in Modalities:
        accuracy[str(modality)] = {
            start: _spread([_accuracy(init, out, world, base, modality, start, seed) for seed in seeds])
            for start in STARTS
        }
    probes = {start: _probe(init, out, world, base, start) for start in STARTS}
    config, _ = _config(base, out)
    classes = len(json.loads((shards / "train" / "index.json").read_text())["labels"])
    summary = {
        "labelled_clips": config.sampling.max_clips,
        "epochs": config.train.epochs,
        "seeds": list(seeds),
        "chance": 1 / classes,
        "accuracy": accuracy,
        "linear_probe": {s: {start: probes[start][f"linear_{s}_top1"] for start in STARTS} for s in STREAMS},
        "retrieval": {
            start: {k: v for k, v in probes[start].items() if k.startswith("retrieval_")} for start in STARTS
        },
        "seconds": round(time.monotonic() - started, 1),
    }
    if world.is_main:
        write_atomically(out / "finetune_summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _accuracy(
    init: Path, out: Path, world: World, base: list[str], modality: Modalities, start: str, seed: int
) -> float:
    run = out / f"{modality}_{start}_{seed}"
    report = run / "evaluation" / "last" / "metrics.json"
    if not report.is_file():
        begin = [f"init={init}"] if start == "pretrained" else []
        config, text = _config([*base, f"objective.modalities={modality}", f"seed={seed}", *begin], run)
        if not finetune(config, text, world):
            raise SystemExit("stopped on request; run the same command again to go on")
    value = json.loads(report.read_text())["results"][str(modality)]["top1"]
    if world.is_main:
        print(f"{modality}, {start}, seed {seed}: accuracy {value:.1%}", flush=True)
    return value


def _probe(init: Path, out: Path, world: World, base: list[str], start: str) -> dict[str, float]:
    run = out / "probe"
    report = run / "evaluation" / start / "metrics.json"
    if not report.is_file():
        # The smaller held-out set to fit on: each of its clips is embedded, with all of its patches.
        held_out = next(word for word in base if word.startswith("data.val=")).removeprefix("data.val=")
        begin = [f"init={init}"] if start == "pretrained" else []
        config, _ = _config([*base, f"data.train={held_out}", *begin], run)
        train = open_labelled(config, config.data.train)
        objective = build_classification(config, train).to(world.device)
        FinalEvaluation(config, train, world, run, 0)(objective, start, classify=False)
    return json.loads(report.read_text())["frozen_features"]


def _config(overrides: list[str], run: Path) -> tuple[FinetuneConfig, str]:
    return parse_config(
        FinetuneConfig, "engine.finetune_demo", ["--config", _CONFIG, f"output_dir={run}", *overrides]
    )


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": std, "each": values}


def main() -> None:
    """Entry point of ``python -m engine.finetune_demo``."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.finetune_demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--init", type=Path, required=True, help="the pretraining run")
    parser.add_argument("--shards", type=Path, required=True, help="the demo's shards")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("overrides", nargs="*", help="config overrides for every run, such as train.epochs=2")
    options = parser.parse_args()
    with distributed() as world:
        setup_console(is_main=False)  # the runs' own lines would be a flood
        finetune_demo(options.init, options.shards, options.out, world, options.seeds, options.overrides)


if __name__ == "__main__":
    main()
