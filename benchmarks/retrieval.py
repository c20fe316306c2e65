"""What retrieval costs: seconds for galleries of several sizes, on random embeddings.

    python -m benchmarks.retrieval [--clips 1500 20000] [--dim 768] [--classes 527] [--device cpu]

Prints a table, and as its last line the same as JSON. Both directions count: ranks of the matches (R@1/5/10, median
rank) and mean average precision by class, which has to sort every row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence

import torch

from engine.evaluation.retrieval import class_retrieval_map, retrieval_metrics
from home_paths import command_line


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description="Time retrieval.")
    parser.add_argument("--clips", type=int, nargs="+", default=[1500, 20000], help="sizes of the gallery")
    parser.add_argument("--dim", type=int, default=768, help="width of the embeddings")
    parser.add_argument("--classes", type=int, default=527, help="classes, 2 to a clip")
    parser.add_argument("--device", default="cpu", help="where to compute")
    parser.add_argument("--no_map", action="store_true", help="leave out mean average precision by class")
    options = parser.parse_args(command_line(arguments))
    generator = torch.Generator().manual_seed(0)
    result: dict[str, float] = {}
    for clips in options.clips:
        audio = torch.randn(clips, options.dim, generator=generator).to(options.device)
        visual = audio + 3 * torch.randn(clips, options.dim, generator=generator).to(options.device)
        labels = torch.zeros(clips, options.classes)
        labels.scatter_(1, torch.randint(options.classes, (clips, 2), generator=generator), 1.0)
        labels = labels.to(options.device)
        pairs = ((audio, visual), (visual, audio))
        result[f"ranks_{clips}"] = seconds(lambda p=pairs: [retrieval_metrics(*x) for x in p], options.device)
        print(f"{clips:8d} clips: ranks {result[f'ranks_{clips}']:8.2f} s", end="", flush=True)
        if not options.no_map:
            result[f"map_{clips}"] = seconds(
                lambda p=pairs, y=labels: [class_retrieval_map(a, b, y) for a, b in p], options.device
            )
            print(f"   mAP by class {result[f'map_{clips}']:8.2f} s", end="")
        print()
    summary = {f"seconds_{name}": round(value, 3) for name, value in result.items()}
    machine = {"device": options.device, "cpu": platform.processor(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "retrieval", "dim": options.dim, **summary, **machine}))


if __name__ == "__main__":
    main()
