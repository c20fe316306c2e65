"""What a step should take on many GPUs: a model of the arithmetic, not a measurement.

::

    step(N) = compute + reduce(N)                                  ZeRO 0
    step(N) = compute + reduce(N) + gather(N)                      ZeRO 1 and 2
    reduce(N) = 2 (N - 1) / N · bytes / bandwidth + 2 (N - 1) · latency · buckets      a ring's all-reduce
    gather(N) =   (N - 1) / N · bytes / bandwidth +   (N - 1) · latency · buckets      of the weights that were updated

``bytes`` are those of all trained parameters in float32, in which Earsight reduces gradients. Nothing overlaps:
DeepSpeed 0.19 reduces after the backward pass below ZeRO 3, and with its stages 1 and 2 every rank gets the whole sum,
as here. Left out: what contrastive objectives gather of embeddings, Adam's share that ZeRO saves, waiting for the
slowest rank and for data. All GPUs lie on one ring of equal links.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.parallel.deepspeed_engine import BUCKET
from engine.preflight.estimates import BUCKET_WITHOUT_ZERO


@dataclass(frozen=True)
class Link:
    """How neighbours on the ring are connected.

    Attributes:
        name: For the table.
        bandwidth: Bytes a second of one GPU in one direction.
        latency: Seconds that a message takes besides.
    """

    name: str
    bandwidth: float
    latency: float

    @staticmethod
    def parse(text: str) -> Link:
        """``NAME=GIGABYTES_PER_SECOND:MICROSECONDS`` as of the command line.

        Raises:
            ValueError: It is not written so, or a number is not above 0.
        """
        name, _, numbers = text.rpartition("=")
        try:
            bandwidth, latency = (float(number) for number in numbers.split(":"))
        except ValueError:
            bandwidth = latency = 0.0
        if not name or bandwidth <= 0 or latency <= 0:
            raise ValueError(f"{text!r}: a link is NAME=GIGABYTES_PER_SECOND:MICROSECONDS, such as ndr=50:5")
        return Link(name, bandwidth * 1e9, latency / 1e6)


#: Line rates of the data sheets for one direction of one GPU, which no collective quite reaches: NVLink 4 of an H100
#: 900 GB/s both ways together, NVLink 3 of an A100 600; InfiniBand NDR 400 and HDR 200 Gbit/s and Ethernet 100 Gbit/s,
#: an adapter for each GPU. Latencies are assumed.
LINKS = (
    Link("NVLink 4", 450e9, 3e-6),
    Link("NVLink 3", 300e9, 3e-6),
    Link("InfiniBand NDR 400", 50e9, 5e-6),
    Link("InfiniBand HDR 200", 25e9, 5e-6),
    Link("Ethernet 100", 12.5e9, 30e-6),
)


@dataclass(frozen=True)
class Step:
    """What is known of a step on one GPU.

    Attributes:
        compute: Its seconds.
        parameters: Numbers that are trained.
        zero_stage: 0, 1 or 2.
    """

    compute: float
    parameters: int
    zero_stage: int

    def communication(self, link: Link, gpus: int) -> float:
        """Seconds of a step in which GPUs do nothing but exchange gradients and weights."""
        rounds = 2 if self.zero_stage == 0 else 3
        buckets = math.ceil(self.parameters / (BUCKET if self.zero_stage else BUCKET_WITHOUT_ZERO))
        moved = 4 * self.parameters * (gpus - 1) / gpus / link.bandwidth
        return rounds * (moved + (gpus - 1) * link.latency * buckets)

    def efficiency(self, link: Link, gpus: int) -> float:
        """Share of the step that is not communication: speed over that of as many GPUs that need not talk."""
        return self.compute / (self.compute + self.communication(link, gpus))


def model_lines(step: Step, links: Sequence[Link], gpus: Sequence[int]) -> Iterator[str]:
    """A Markdown table of what is to be expected, with the words that it is a model."""
    millions = step.parameters / 1e6
    yield "**A model, not a measurement** (the ring's arithmetic in `benchmarks/scaling_model.py`): a step computes for"
    yield f"{step.compute:.4g} s and then moves {millions:.1f} million float32 numbers, ZeRO {step.zero_stage}."
    yield "Expected efficiency of weak scaling, and seconds of communication a step:"
    yield ""
    yield f"| link | GB/s | µs | {' | '.join(f'{n} GPUs' for n in gpus)} |"
    yield "|" + "---|" * (3 + len(gpus))
    for link in links:
        cells = [f"{step.efficiency(link, n):.1%} ({step.communication(link, n):.3g} s)" for n in gpus]
        yield f"| {link.name} | {link.bandwidth / 1e9:g} | {link.latency * 1e6:g} | {' | '.join(cells)} |"
