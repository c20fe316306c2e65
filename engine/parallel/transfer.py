"""Batches on their way to the device."""

from __future__ import annotations

import torch

from datasets.batch import AVBatch


class Transfer:
    """Sends batches to the device, on a GPU beside what that still computes of the step before.

    The host is ahead of a GPU, so a batch that is sent on the stream of the steps comes after the last of them. On a
    stream of its own it comes meanwhile, and the steps' stream waits for it.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: AVBatch) -> AVBatch:
        """The batch on the device, for use on the present stream; nobody waits but that stream."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device)
        steps = torch.cuda.current_stream(self._device)
        steps.wait_stream(self._stream)
        # Else the memory could be given to the next batch when the host has dropped this one.
        moved.record_stream(steps)
        return moved
