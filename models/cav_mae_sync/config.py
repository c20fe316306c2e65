"""What a CAV-MAE Sync model is: CAV-MAE's sizes, stretches of sound, global tokens, registers, contrast blocks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from models.cav_mae.config import Architecture, CavMaeModelConfig
from models.config import unknown_name

PRESETS = {
    "cav_mae_sync_tiny": Architecture(192, 3, 3, 1, 128, 2, 4),
    "cav_mae_sync_small": Architecture(384, 6, 11, 1, 256, 4, 8),
    "cav_mae_sync_base": Architecture(768, 12, 11, 1, 512, 8, 16),
}
PURPOSES = {
    "cav_mae_sync_tiny": "for trying things on a laptop: width 192, 3 + 1 blocks, decoder 2 blocks of 128",
    "cav_mae_sync_small": "ViT-S: width 384, 11 + 1 blocks, decoder 4 blocks of 256",
    "cav_mae_sync_base": "ViT-B, the published CAV-MAE Sync and TG-DP: width 768, 11 + 1 blocks, decoder 8 of 512",
}


@dataclass(frozen=True)
class CavMaeSyncModelConfig(CavMaeModelConfig):
    """A CAV-MAE Sync model by name; see `CavMaeModelConfig` for what is not said here.

    Attributes:
        name: The preset: cav_mae_sync_tiny, cav_mae_sync_small or cav_mae_sync_base.
        audio_length: Frames T of a clip's whole fbank (1024 for 10 s).
        segment_length: Rows of the fbank that go with a picture: what the encoder sees at a time (416, about 4 s).
        num_registers: Registers R of each modality (published: 8), dropped before the joint blocks.
        contrast_depth: Blocks of each modality between the joint blocks and the contrast (published: 0 or 2).
    """

    name: str = "cav_mae_sync_base"
    segment_length: int = 416
    num_registers: int = 8
    contrast_depth: int = 0

    def __post_init__(self) -> None:
        if self.name not in PRESETS:
            raise unknown_name("model", self.name, PRESETS)
        for name in ("num_registers", "contrast_depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.segment_length > self.audio_length:
            raise ValueError(
                f"segment_length is {self.segment_length}, longer than the spectrogram of audio_length "
                f"{self.audio_length}: the sound beside a picture is a stretch of it"
            )
        if self.patch_size > 0 and (self.segment_length < 1 or self.segment_length % self.patch_size):
            raise ValueError(
                f"segment_length is {self.segment_length}; it must be a positive multiple of patch_size "
                f"{self.patch_size}"
            )
        self._check_sizes()
        self._check_architecture()

    @property
    def architecture(self) -> Architecture:
        """The preset with the overrides of this config."""
        chosen = {f.name: getattr(self, f.name) for f in fields(Architecture)}
        preset = PRESETS[self.name]
        return replace(preset, **{name: value for name, value in chosen.items() if value is not None})

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Rows (frequency) and columns (time) of the audio patches of a stretch."""
        return self.num_mel_bins // self.patch_size, self.segment_length // self.patch_size
