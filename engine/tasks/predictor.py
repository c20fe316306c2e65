"""Trained models as something that predicts: whatever was fine-tuned, probabilities by head from batches of clips."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from engine.parallel.deepspeed_engine import ParallelConfig

#: The reason why a clip is rejected that `Predictor.takes` refuses.
NOTHING = "nothing that the model takes"


class Predictor(nn.Module, ABC):
    """A trained model in evaluation mode; ``engine.tasks.finetune.open_predictor`` opens a run's.

    Attributes:
        heads: The classes of each head, in the order of its probabilities.
        needs: What it wants of a clip, with ``held_out_frames``. A batch of clips read so is what it takes, and what
            it says of them is what the evaluation of the run says.
        batch_size: Clips to a batch in the evaluation. Other sizes may change the last bits.
        parallel: The run's precision, which ``predict`` leaves to who calls it.
    """

    heads: dict[str, list[str]]
    needs: ClipNeeds
    batch_size: int = 32
    parallel: ParallelConfig = ParallelConfig()

    def takes(self, batch: AVBatch) -> Tensor:
        """(B,) bool, which clips of a batch have something that the model takes; see `predict`."""
        return torch.ones(len(batch), dtype=torch.bool, device=batch.rows.device)

    @abstractmethod
    def predict(self, batch: AVBatch) -> dict[str, Tensor]:
        """(B, classes) float32 probabilities by head.

        A clip may lack some of what is needed (``num_samples`` 0, ``num_stored`` 0, no text), but not all of it.

        Args:
            batch: Clips on the model's device. Frames may be more than the model takes at a time: what it says of
                them is averaged.

        Raises:
            ValueError: A clip has nothing that the model takes.
        """

    def check(self, batch: AVBatch) -> None:
        """Raises a ``ValueError`` that names the first clip of a batch that has nothing which the model takes."""
        some = self.takes(batch)
        if not some.all():
            raise ValueError(f"clip {batch.ids[int(some.long().argmin())]} has {NOTHING}")
