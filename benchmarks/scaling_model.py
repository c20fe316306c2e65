"""What a step should take on many GPUs: a model of the arithmetic, not a measurement.

::

    step(N) = compute + wait(N)
    wait(N) = max(reduce(N) / buckets, reduce(N) - backward)       ZeRO 0
    wait(N) = reduce(N) + gather(N)                                ZeRO 1 and 2
    reduce(N) = 2 (N - 1) / N · bytes / bandwidth + 2 ⌈log2 N⌉ · latency · buckets     a tree's all-reduce
    gather(N) =   (N - 1) / N · bytes / bandwidth +   (N - 1)  · latency · buckets     a ring's, of updated weights

``bytes`` are those of all trained parameters in float32, in which Earsight reduces gradients. Without ZeRO that goes on
during the backward pass, two thirds of the computing, but for the last bucket (`engine.parallel.reduction`). With
stages 1 and 2, as set up here, DeepSpeed 0.19 computes nothing meanwhile, and every rank gets the whole sum. NCCL sums
along trees where a ring's latency would count. Left out: what contrastive objectives gather of embeddings, Adam's share
that ZeRO saves, waiting for the slowest rank and for data, and what an exchange takes of the computing beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.parallel.deepspeed_engine import BUCKET
from engine.parallel.reduction import BUCKET as BUCKET_WITHOUT_ZERO

#: The backward pass's share of what a step computes: two products of matrices for each of the forward pass.
_BACKWARD = 2 / 3


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

    def reduction(self, link: Link, gpus: int) -> float:
        """Seconds of exchange until every GPU has the mean of the gradients."""
        hops = math.ceil(math.log2(gpus))
        return 2 * (self._moved(link, gpus) + hops * link.latency * self._buckets)

    def waiting(self, link: Link, gpus: int) -> float:
        """Seconds of a step in which GPUs do nothing but exchange gradients and weights."""
        seconds = self.reduction(link, gpus)
        if self.zero_stage == 0:
            return max(seconds / self._buckets, seconds - _BACKWARD * self.compute)
        return seconds + self._moved(link, gpus) + (gpus - 1) * link.latency * self._buckets

    def efficiency(self, link: Link, gpus: int) -> float:
        """Share of the step that is not waiting: speed over that of as many GPUs that need not talk."""
        return self.compute / (self.compute + self.waiting(link, gpus))

    @property
    def _buckets(self) -> int:
        return math.ceil(self.parameters / (BUCKET if self.zero_stage else BUCKET_WITHOUT_ZERO))

    def _moved(self, link: Link, gpus: int) -> float:
        """Seconds in which a GPU's share of all numbers passes its link once."""
        return 4 * self.parameters * (gpus - 1) / gpus / link.bandwidth


def model_lines(step: Step, links: Sequence[Link], gpus: Sequence[int]) -> Iterator[str]:
    """A Markdown table of what is to be expected, with the words that it is a model."""
    millions = step.parameters / 1e6
    yield "**A model, not a measurement** (the arithmetic in `benchmarks/scaling_model.py`): a step computes for"
    yield f"{step.compute:.4g} s and moves {millions:.1f} million float32 numbers, ZeRO {step.zero_stage}."
    yield "Expected efficiency of weak scaling, and seconds a step that GPUs wait for the exchange:"
    yield ""
    yield f"| link | GB/s | µs | {' | '.join(f'{n} GPUs' for n in gpus)} |"
    yield "|" + "---|" * (3 + len(gpus))
    for link in links:
        cells = [f"{step.efficiency(link, n):.1%} ({step.waiting(link, n):.3g} s)" for n in gpus]
        yield f"| {link.name} | {link.bandwidth / 1e9:g} | {link.latency * 1e6:g} | {' | '.join(cells)} |"
