"""The fusion model: towers, and what joins their tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.fusion.config import FusionModelConfig
from models.fusion.joining import FUSIONS, Fused, HeadShape
from models.fusion.pooling import on_timeline
from models.measured import clip_cost, unused_parameters
from models.towers import Sound, TextTower, Tokens, Tower, VisualTower, Words
from models.workload import Workload


@dataclass(frozen=True)
class FusionInputs:
    """What the towers take, of B clips; None for a modality that the model does not take.

    Attributes:
        sound: Waveforms and spectrograms.
        pictures: (B, N, 3, H, W) normalised.
        words: The texts in pieces.
        present: By modality (B,) bool, which clips have it; each clip has one at least.
    """

    sound: Sound | None
    pictures: Tensor | None
    words: Words | None
    present: Mapping[str, Tensor]

    def of(self, modality: str) -> Any:
        """The input of a tower."""
        return {"audio": self.sound, "visual": self.pictures, "text": self.words}[modality]


class FusionModel(nn.Module):
    """Towers and fusion.

    Args:
        config: What it is made of.
        towers: By modality, in the usual order (`models.fusion.towers.build_towers`).
        heads: By name.
    """

    def __init__(
        self, config: FusionModelConfig, towers: Mapping[str, Tower[Any]], heads: Mapping[str, HeadShape]
    ) -> None:
        super().__init__()
        self.config = config
        self.towers = nn.ModuleDict(towers)
        widths = {name: tower.width for name, tower in towers.items()}
        self.fusion = FUSIONS[config.fusion](config, widths, heads)

    def forward(self, inputs: FusionInputs, frozen: Collection[str] = ()) -> Fused:
        """What is said of a batch.

        Args:
            inputs: Of B clips.
            frozen: Modalities whose towers get no gradient.
        """
        return self.fusion(self.tokens(inputs, frozen), inputs.present)

    def tokens(self, inputs: FusionInputs, frozen: Collection[str] = ()) -> dict[str, Tokens]:
        """What the towers say, by modality, on the timeline; arguments as of ``forward``."""
        found = {}
        for name, tower in self.towers.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and name not in frozen):
                found[name] = on_timeline(tower(inputs.of(name)), name)
        return found

    def tokenize(self, texts: list[str | None]) -> Words:
        """The texts in the pieces of the tower for text, on the CPU."""
        return self.text_tower.tokenize(texts)

    @property
    def text_tower(self) -> TextTower:
        """The tower for text."""
        tower = self.towers["text"]
        assert isinstance(tower, TextTower)
        return tower

    @property
    def visual_tower(self) -> VisualTower:
        """The tower for frames."""
        tower = self.towers["visual"]
        assert isinstance(tower, VisualTower)
        return tower

    def freeze_unused(self, num_samples: int, frames: int) -> None:
        """Freezes parameters that get no gradient, such as half an audio-visual encoder; arguments as of `workload`."""
        names = unused_parameters(
            self, lambda clips: (self.empty_inputs(clips, num_samples, frames),), _everything
        )
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in names)

    def workload(self, num_samples: int, frames: int, bf16: bool) -> Workload:
        """One clip's share of a step in which everything that can be trained is; texts are of 32 pieces.

        Args:
            num_samples: S of the waveform.
            frames: N.
            bf16: Whether autocast computes in 16 bits.
        """
        flops, kept = clip_cost(self, lambda clips: (self.empty_inputs(clips, num_samples, frames),), bf16)
        trained = any(p.requires_grad for tower in self.towers.values() for p in tower.parameters())
        return Workload((3.0 if trained else 1.0) * flops, kept)

    def empty_inputs(self, clips: int, num_samples: int, frames: int) -> FusionInputs:
        """Inputs of the right sizes; arguments as of `workload`."""
        config = self.config
        words = min(_WORDS, self.text_tower.max_length) if "text" in self.towers else 1
        return FusionInputs(
            Sound(
                torch.zeros(clips, num_samples, dtype=torch.int16),
                torch.full((clips,), num_samples),
                torch.zeros(clips, config.audio_length, config.num_mel_bins),
            ),
            torch.zeros(clips, frames, 3, config.image_size, config.image_size),
            Words(torch.ones(clips, words, dtype=torch.int64), torch.ones(clips, words, dtype=torch.bool)),
            {name: torch.ones(clips, dtype=torch.bool) for name in config.present},
        )

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        endings = (
            ".embed.weight",
            "embeddings.weight",
            "_embed",
            "_embeddings",
            "_token",
            ".shared",
            ".centres",
        )
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name.endswith(endings) or ".modality_embed." in name}


#: Pieces of a text of which a workload is counted.
_WORDS = 32


def _everything(fused: Fused) -> Tensor:
    return torch.stack([o.logits.sum() for opinions in fused.opinions.values() for o in opinions]).sum()
