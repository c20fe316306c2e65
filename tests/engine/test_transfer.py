"""The next batch goes to a GPU beside the step before; without one, the order of what it is told stands for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest.mock import patch

import torch
from support.training import make_batch
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.sampling import MixedBatch
from engine.parallel.transfer import Transfer


class Stream:
    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


def mixed() -> MixedBatch:
    own, partners = make_batch([0, 1]), make_batch([2, 3])
    return MixedBatch(**vars(own), weights=torch.ones(2), partners=partners)


def tensors(batch: AVBatch) -> int:
    found = [getattr(batch, field.name) for field in fields(batch)]
    return sum(isinstance(value, Tensor) for value in found)


def test_it_is_sent_on_a_stream_of_its_own_which_the_steps_wait_for() -> None:
    told: list[str] = []
    steps, current = Stream("steps", told), ["steps"]
    batch = mixed()

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream.name)
        yield
        current.pop()

    def sent(self: AVBatch, device: torch.device) -> AVBatch:
        told.append(f"sent to {device} on {current[-1]}")
        return replace(self)

    recorded: list[Any] = []
    gpu = torch.device("cuda", 0)
    with (
        patch.object(torch.cuda, "Stream", lambda _: Stream("its own", told)),
        patch.object(torch.cuda, "stream", on),
        patch.object(torch.cuda, "current_stream", lambda _: steps),
        patch.object(AVBatch, "to", sent),
        patch.object(Tensor, "record_stream", lambda _, stream: recorded.append(stream)),
    ):
        Transfer(gpu)(batch)
    assert told == ["sent to cuda:0 on its own", "steps waits for its own"]
    assert batch.partners is not None
    assert recorded == [steps] * (tensors(batch) + tensors(batch.partners))


def test_on_a_cpu_it_is_as_it_was() -> None:
    batch = make_batch([0, 1])
    moved = Transfer(torch.device("cpu"))(batch)
    assert moved.waveform is batch.waveform
    assert moved.ids == batch.ids
