"""A frozen teacher: a trained encoder that a run learns from, kept once beside its checkpoints.

It is in no state dict, no optimizer and no checkpoint. The run's folder holds one copy, ``teacher/SHA256.safetensors``,
so that the run can go on when what it was named after has moved; each checkpoint holds the hash.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from engine.parallel.world import World
from models import Encoder, FbankConfig, ModelConfig, build_encoder
from models.pretrained import build_described, describe
from models.weights.description import save_described, weights_hash
from models.weights.errors import WeightsError
from models.weights.initialize import initialize
from models.weights.sources import SourceKind, SourceWeights, read_weights

_FOLDER = "teacher"


class FrozenTeacher:
    """An encoder without gradient. Not a module, so that nothing that walks modules finds it.

    Args:
        source: What ``objective.teacher`` says: a run, a checkpoint, an exported model or a published file.
        check: Raises ``ValueError`` for an encoder's config, and a spectrogram's where it is known, that the student
            can't learn from.
    """

    def __init__(self, source: str, check: Callable[[ModelConfig, FbankConfig | None], None]) -> None:
        self.source, self._check = source, check
        self._encoder: Encoder | None = None
        self._sha256 = ""
        self._device = torch.device("cpu")

    @property
    def sha256(self) -> str:
        """Of the encoder's weights."""
        self.encoder(self._device)
        return self._sha256

    def encoder(self, device: torch.device) -> Encoder:
        """The encoder in evaluation mode on a device; read when it is first asked for.

        Raises:
            WeightsError: There are no such weights, or they are no trained encoder.
        """
        if self._encoder is None:
            self._take(read_weights(self.source))
        assert self._encoder is not None
        if device != self._device:
            self._encoder.to(device)
            self._device = device
        return self._encoder

    def keep_in(self, run: Path, resumed: bool, world: World) -> None:
        """Keeps a copy in a run's folder, or takes the one that is there.

        Args:
            run: The run's folder.
            resumed: Whether the run has a checkpoint, and so a teacher already.
            world: The processes; every rank calls it. The main one looks what is there, and writes.

        Raises:
            WeightsError: There is no teacher, or it is another than the run began with, or the run is its own.
        """
        kept = world.from_main(lambda: _kept_in(run)) if resumed else None
        if kept is None:
            world.from_main(lambda: self._refuse_itself(run))
            source = read_weights(self.source)
            self._take(source)
            if world.is_main:
                self._write(run, source)
            return
        self._take(read_weights(kept))
        if self._sha256 != kept.stem:
            raise WeightsError(f"{kept} holds weights of another hash, {self._sha256}: it was changed")
        world.from_main(lambda: self._refuse_changed(run, kept))

    def _refuse_changed(self, run: Path, kept: Path) -> None:
        """Raises `WeightsError` where the source is still there and is another than was kept."""
        if Path(self.source).exists() and (now := _encoder_hash(read_weights(self.source))) != self._sha256:
            raise WeightsError(
                f"objective.teacher {self.source} has changed: its encoder's hash is {now[:12]}…, and {run} began with "
                f"{self._sha256[:12]}…. To go on with that one give objective.teacher={kept}; for another teacher "
                f"begin another run"
            )

    def _refuse_itself(self, run: Path) -> None:
        if Path(self.source).exists() and Path(self.source).resolve().is_relative_to(run.resolve()):
            raise WeightsError(
                f"objective.teacher {self.source} is in output_dir {run}: a student cannot be its own teacher; give "
                f"another output_dir"
            )

    def _take(self, source: SourceWeights) -> None:
        if source.kind is SourceKind.vit:
            raise WeightsError(f"{source.path} is a picture model, no trained audio-visual encoder")
        config = source.model_config()
        try:
            self._check(config, source.fbank)
        except ValueError as error:
            raise WeightsError(f"objective.teacher {source.path}: {error}") from error
        encoder = build_described(source, config, lambda: build_encoder(config))
        initialize(encoder, source)
        self._encoder = encoder.requires_grad_(False).eval()
        self._sha256, self._device = _encoder_hash(source), torch.device("cpu")

    def _write(self, run: Path, source: SourceWeights) -> None:
        assert self._encoder is not None
        state = {f"encoder.{name}": value for name, value in self._encoder.state_dict().items()}
        path = run / _FOLDER / f"{self._sha256}.safetensors"
        save_described(path, state, describe(source, self._encoder.config))
        for other in path.parent.glob("*.safetensors"):
            if other != path:
                other.unlink()  # of a start that never came to a checkpoint


def _kept_in(run: Path) -> Path | None:
    """The teacher that a run has kept."""
    return next(iter(sorted((run / _FOLDER).glob("*.safetensors"))), None)


def _encoder_hash(source: SourceWeights) -> str:
    return weights_hash({name: value for name, value in source.state.items() if name.startswith("encoder.")})
