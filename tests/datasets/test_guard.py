"""A decoder that dies costs the clip it was given: named, replaced or left out, wherever reading happens."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from support.shards import make_shards
from torch import Tensor

from datasets.batch import Clip, ReadFailure, Ticket
from datasets.guard import DecoderDiedError, Guard
from datasets.loading.config import ClipNeeds, DataConfig
from datasets.loading.loader import evaluation_loader
from datasets.loading.reader import ClipReader


def work(what: str) -> tuple[Tensor, int]:
    """Dies, hangs, fails or answers."""
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what == "fail":
        raise KeyError(what)
    return torch.arange(5, dtype=torch.int16), os.getpid()


def test_a_call_that_kills_is_an_error_of_that_call():
    guard = Guard(work, timeout=5)
    tensor, first = guard("well")
    assert torch.equal(tensor, torch.arange(5, dtype=torch.int16))
    assert first != os.getpid()
    with pytest.raises(DecoderDiedError, match="ended with SIGSEGV, twice"):
        guard("die")
    with pytest.raises(KeyError, match="fail"):
        guard("fail")
    assert guard("well")[1] != first
    child = guard("well")[1]
    guard.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_call_that_never_returns_is_given_up():
    guard = Guard(work, timeout=0.2)
    with pytest.raises(DecoderDiedError, match=r"took more than 0\.2 s"):
        guard("hang")
    guard.close()


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch) -> Path:
    """A set of six clips, of which the decoder of the third one's pictures ends its process."""
    folder = make_shards(tmp_path / "set", 6, 3)
    plain = ClipReader(folder, image_size=16)
    bad = plain._decode(2, 0).frames
    plain.close()
    assert bad is not None
    from datasets.decode import decode_frame

    def dying(data: bytearray, image_size: int) -> Tensor:
        frame = decode_frame(data, image_size)
        if (frame[0].float().mean() - bad[0, 0].float().mean()).abs() < 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        return frame

    monkeypatch.setattr("datasets.loading.reader.decode_frame", dying)
    return folder


def test_training_takes_another_clip(deadly: Path):
    reader = ClipReader(deadly, image_size=16)
    clip = reader.read(Ticket(2, 7))
    assert isinstance(clip, Clip)
    assert clip.row != 2
    assert [failure.id for failure in clip.failures] == ["clip-00002"]
    assert "SIGSEGV" in clip.failures[0].reason
    assert isinstance(reader.read(Ticket(3, 7)), Clip)
    reader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_leaves_it_out(deadly: Path, num_workers: int):
    config = DataConfig(train=str(deadly), num_workers=num_workers)
    loader = evaluation_loader(config, str(deadly), ClipNeeds(image_size=16), batch_size=3)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [2, 3]
    failures = [failure for batch in batches for failure in batch.failures]
    assert [(type(failure), failure.id) for failure in failures] == [(ReadFailure, "clip-00002")]
