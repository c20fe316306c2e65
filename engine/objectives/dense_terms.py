"""The regularisers of an objective `dense`: their weights, the tokens they draw, each by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from models import Stream, uniform
from models.dense import regularizers
from models.dense.similarity import clip_volumes


@dataclass(frozen=True)
class TermWeights:
    """Weights of the regularisers; one of 0 is not computed. See `models.dense.regularizers` for their definitions.

    Attributes:
        nonnegativity: Of drawn tokens of sound and pictures.
        silence: Mean size of what drawn silent tokens have in common with pictures.
        silence_squared: Its square.
        spliced_audio: Needs ``objective.splice_share``.
        mixed_picture: Needs ``objective.mix_share``.
        total_variation: In time.
        specialization: Of several heads.
        scale: What holds the learned factor in its range.
        negative_similarity: Max-mean's, of all pairs.
    """

    nonnegativity: float = 0.0
    silence: float = 0.0
    silence_squared: float = 0.0
    spliced_audio: float = 0.0
    mixed_picture: float = 0.0
    total_variation: float = 0.0
    specialization: float = 0.0
    scale: float = 0.0
    negative_similarity: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(
                    f"objective.weights.{field.name} is {getattr(self, field.name)}: it must be 0 or more"
                )


@dataclass(frozen=True)
class JointTokens:
    """The tokens of the clips of all ranks, in the order of the global micro-batch.

    Attributes:
        audio: (B, K, T, C).
        visual: (B, K, P, C).
        real: (B, T) 1 for moments of the clip.
        sound: (B, T) 1 for sound.
        own_sound: (B, T) in 0 … 1, 1 for the clip's own.
        own_picture: (B, P) likewise.
        seeds: (B,).
    """

    audio: Tensor
    visual: Tensor
    real: Tensor
    sound: Tensor
    own_sound: Tensor
    own_picture: Tensor
    seeds: Tensor


def regularizing_terms(
    tokens: JointTokens, weights: TermWeights, num_drawn: int, clamp: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The terms with a weight, before it, but for those of the scale and of all pairs.

    Args:
        tokens: Of all ranks, so that every rank computes the same.
        weights: Which.
        num_drawn: Tokens drawn of each modality.
        clamp: What similarities are clamped by, if they are.
    """
    volume = clamp(clip_volumes(tokens.audio, tokens.visual) * tokens.sound[:, None, None])

    def of_silence(penalty: Callable[[Tensor], Tensor]) -> Tensor:
        return regularizers.silence(*_silent(tokens, num_drawn), tokens.visual, lambda s: penalty(clamp(s)))

    terms: dict[str, Callable[[], Tensor]] = {
        "nonnegativity": lambda: regularizers.nonnegativity(*_drawn(tokens, num_drawn)),
        "silence": lambda: of_silence(torch.abs),
        "silence_squared": lambda: of_silence(torch.square),
        "spliced_audio": lambda: regularizers.spliced_audio(volume, tokens.own_sound, tokens.sound),
        "mixed_picture": lambda: regularizers.mixed_picture(volume, tokens.own_picture),
        "total_variation": lambda: regularizers.total_variation(volume),
        "specialization": lambda: regularizers.specialization(volume),
    }
    return {name: term() for name, term in terms.items() if getattr(weights, name) > 0}


def _drawn(tokens: JointTokens, count: int) -> tuple[Tensor, Tensor]:
    """(n, K, C) moments and (n, K, C) places of n clips drawn with repetition; a moment and a place of the same clip.

    A function of the seed of the first clip of all ranks.
    """
    draws = uniform(tokens.seeds[:1], Stream.DRAWN_TOKENS, (3, count))[0]
    clips = (draws[0] * len(tokens.audio)).long()
    moments = (draws[1] * tokens.real.sum(1)[clips]).long()
    places = (draws[2] * tokens.visual.shape[2]).long()
    return tokens.audio[clips, :, moments], tokens.visual[clips, :, places]


def _silent(tokens: JointTokens, count: int) -> tuple[Tensor, Tensor]:
    """(n, K, C) drawn silent moments, and (n,) 1 for each of them, 0 where there are fewer."""
    silent = (tokens.real - tokens.sound).flatten()
    order = uniform(tokens.seeds, Stream.DRAWN_SILENCE, (tokens.real.shape[1],)).flatten() - silent
    chosen = order.topk(min(count, len(order)), largest=False).indices
    return tokens.audio.transpose(1, 2).flatten(0, 1)[chosen], silent[chosen]
