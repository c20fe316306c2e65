"""What turns batches of clips into vectors: our encoders, or a backbone of others (`engine.embed.backbones`)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from datasets.batch import AVBatch
from datasets.decode import SAMPLE_RATE
from datasets.loading.config import ClipNeeds
from datasets.loading.frames import EvenFrames
from datasets.loading.loader import NUM_SAMPLES
from datasets.loading.reader import FrameChoice, middle_frame
from models import PretrainedEncoders

Vectors = dict[str, Tensor]
"""(B, D) float32 vectors by name: ``audio``, ``visual``, ``joint``."""


class Embedder(nn.Module, ABC):
    """A model, and what it needs of a clip.

    ``forward`` takes an `AVBatch` on the model's device and returns `Vectors`. No vector depends on which
    other clips are in the batch.

    Attributes:
        audio: Whether it takes sound.
        choose_frames: Which frames it takes; None for none.
        image_size: Side of the frames in pixels.
        num_samples: Samples of sound that it hears; what is longer is cut.
    """

    audio: bool
    choose_frames: FrameChoice | None
    image_size: int = 224
    num_samples: int = NUM_SAMPLES

    @property
    def needs(self) -> ClipNeeds:
        """What is read of a clip for it."""
        return ClipNeeds(
            audio=self.audio,
            held_out_frames=self.choose_frames,
            image_size=self.image_size,
            num_samples=self.num_samples,
        )

    @abstractmethod
    def forward(self, batch: AVBatch) -> Vectors:
        """The vectors of a batch."""


class EarsightEmbedder(Embedder):
    """Our encoders.

    Args:
        encoders: From ``models.load_pretrained``.
        choose_frames: Which of a clip's frames; the vectors are the means over them. Encoders that take several frames
            at a time get so many, evenly spaced.

    Raises:
        ValueError: They were trained at another sample rate than clips are decoded at.
    """

    def __init__(self, encoders: PretrainedEncoders, choose_frames: FrameChoice = middle_frame) -> None:
        super().__init__()
        if encoders.fbank.sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"the model hears {encoders.fbank.sample_rate} Hz; clips are read at {SAMPLE_RATE} Hz"
            )
        self.encoders = encoders
        count = encoders.config.num_frames
        self.audio = True
        self.choose_frames = choose_frames if count == 1 else EvenFrames(count, repeat=True)
        self.image_size = encoders.config.image_size
        self.num_samples = encoders.fbank.num_samples

    def forward(self, batch: AVBatch) -> Vectors:
        """See `Embedder`."""
        found = self.encoders(batch.waveform, batch.num_samples, batch.frames)
        vectors = {"audio": found.audio, "visual": found.visual, "joint": found.joint}
        return {name: value.float() for name, value in vectors.items() if value is not None}
