"""Late, intermediate and early fusion: from the modalities' tokens to what is said of every head's classes.

Each clip may lack some modalities, never all of them. Whatever is absent has no influence, and every parameter takes
part in every batch, so that ranks whose clips lack a modality reduce the same gradients as the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from models.fusion.config import FusionModelConfig
from models.fusion.pooling import POOLINGS
from models.layers.blocks import Block, init_weights
from models.towers import Tokens


@dataclass(frozen=True)
class HeadShape:
    """A head.

    Attributes:
        num_classes: C.
        several: Whether a clip may have several of its classes: each is a yes or no for itself.
    """

    num_classes: int
    several: bool = False

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C) logits -> float32 scores in 0 … 1, summing to 1 unless there may be several classes."""
        return logits.float().sigmoid() if self.several else logits.float().softmax(1)


#: Attributes of a module, whose names its parts can't have.
_TAKEN = frozenset(dir(nn.ModuleDict()))


def _key(head: str) -> str:
    """The name of a head's layer; a task has no colon in its name."""
    return f"{head}:" if head in _TAKEN else head


@dataclass(frozen=True)
class Opinion:
    """Logits that are trained.

    Attributes:
        logits: (B, C) float32.
        weight: (B,) float32, how much each clip counts.
    """

    logits: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Fused:
    """What a fusion says, by head.

    Attributes:
        probabilities: (B, C) float32.
        opinions: What the loss is the sum of.
    """

    probabilities: dict[str, Tensor]
    opinions: dict[str, list[Opinion]]


class Fusion(nn.Module, ABC):
    """Joins modalities.

    Args:
        config: Of the whole model.
        widths: D of each modality's tokens, in the usual order of the modalities.
        heads: By name.
    """

    def __init__(
        self, config: FusionModelConfig, widths: Mapping[str, int], heads: Mapping[str, HeadShape]
    ) -> None:
        super().__init__()
        self.config, self.heads = config, dict(heads)
        self.modalities = tuple(widths)

    @abstractmethod
    def forward(self, tokens: Mapping[str, Tokens], present: Mapping[str, Tensor]) -> Fused:
        """What is said of a batch.

        Args:
            tokens: By modality, on their timelines (`models.fusion.pooling.on_timeline`).
            present: By modality (B,) bool, which clips have it; each clip has one at least.
        """

    def _said(self, logits: dict[str, Tensor]) -> Fused:
        """What is trained is what is said."""
        ones = {name: torch.ones_like(value[:, 0]) for name, value in logits.items()}
        return Fused(
            {name: shape.probabilities(logits[name]) for name, shape in self.heads.items()},
            {name: [Opinion(value, ones[name])] for name, value in logits.items()},
        )


class _Pooled(Fusion):
    """A fusion of pooled vectors."""

    def __init__(
        self, config: FusionModelConfig, widths: Mapping[str, int], heads: Mapping[str, HeadShape]
    ) -> None:
        super().__init__(config, widths, heads)
        self.pool = nn.ModuleDict(
            {m: POOLINGS[config.tower(m).pooling](width, config.tower(m)) for m, width in widths.items()}
        )
        pooled = {m: cast(int, self.pool[m].width) for m in widths}
        self.norm = nn.ModuleDict({m: nn.LayerNorm(w, eps=config.layer_norm_eps) for m, w in pooled.items()})
        self.pooled = pooled

    def vectors(self, tokens: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """(B, D) float32 by modality, normalised; that of an absent modality means nothing, but is finite."""
        return {m: self.norm[m](self.pool[m](tokens[m])) for m in self.modalities}


class Late(_Pooled):
    """Every modality is trained by itself; their words are joined by `LateConfig.combine`."""

    def __init__(
        self, config: FusionModelConfig, widths: Mapping[str, int], heads: Mapping[str, HeadShape]
    ) -> None:
        super().__init__(config, widths, heads)
        self.head = nn.ModuleDict(
            {
                m: nn.ModuleDict(
                    {_key(name): nn.Linear(width, shape.num_classes) for name, shape in heads.items()}
                )
                for m, width in self.pooled.items()
            }
        )
        count = len(widths)
        stacked = {
            _key(name): nn.Linear(count * shape.num_classes, shape.num_classes)
            for name, shape in heads.items()
        }
        self.stack = nn.ModuleDict(stacked if config.late.combine == "stacked" else {})
        self.head.apply(init_weights)

    def forward(self, tokens: Mapping[str, Tokens], present: Mapping[str, Tensor]) -> Fused:
        """See `Fusion.forward`."""
        device = next(iter(present.values())).device
        with torch.autocast(device.type, enabled=False):
            vectors = self.vectors(tokens)
            there = torch.stack([present[m] for m in self.modalities], 1).float()
            probabilities, opinions = {}, {}
            for name, shape in self.heads.items():
                logits = [cast(nn.ModuleDict, self.head[m])[_key(name)](vectors[m]) for m in self.modalities]
                shares = there / there.sum(1, keepdim=True)
                opinions[name] = [Opinion(x, shares[:, i]) for i, x in enumerate(logits)]
                each = torch.stack([shape.probabilities(x) for x in logits], 1)
                joined = _COMBINE[self.config.late.combine](
                    self, name, shape, each.detach(), there, opinions[name]
                )
                probabilities[name] = joined
        return Fused(probabilities, opinions)

    def weights(self, there: Tensor) -> Tensor:
        """(B, M) what each modality's word weighs, summing to 1 over those that are there."""
        given = [getattr(self.config.late, m) for m in self.modalities]
        weights = torch.stack([x * weight for x, weight in zip(there.unbind(1), given, strict=True)], 1)
        return weights / weights.sum(1, keepdim=True)


def _mean(
    fusion: Late, name: str, shape: HeadShape, each: Tensor, there: Tensor, opinions: list[Opinion]
) -> Tensor:
    return (each * fusion.weights(there)[..., None]).sum(1)


def _vote(
    fusion: Late, name: str, shape: HeadShape, each: Tensor, there: Tensor, opinions: list[Opinion]
) -> Tensor:
    votes = (each > 0.5) if shape.several else F.one_hot(each.argmax(2), shape.num_classes)
    return (votes.float() * fusion.weights(there)[..., None]).sum(1)


def _stacked(
    fusion: Late, name: str, shape: HeadShape, each: Tensor, there: Tensor, opinions: list[Opinion]
) -> Tensor:
    logits = fusion.stack[_key(name)]((each * there[..., None]).flatten(1))
    opinions.append(Opinion(logits, torch.ones_like(logits[:, 0])))
    return shape.probabilities(logits)


#: From (B, M, C) probabilities of each modality by itself and (B, M) which are there: (B, C). A combination that is
#: trained adds its opinion.
_COMBINE: dict[str, Callable[[Late, str, HeadShape, Tensor, Tensor, list[Opinion]], Tensor]] = {
    "mean": _mean,
    "vote": _vote,
    "stacked": _stacked,
}


class Intermediate(_Pooled):
    """``head(gelu(W [x_1 … x_M]))``, where x_m is a projection of modality m, or a learned vector if it is absent.

    Gated, each x_m is multiplied by ``sigmoid(V_m [x_1 … x_M])``.
    """

    def __init__(
        self, config: FusionModelConfig, widths: Mapping[str, int], heads: Mapping[str, HeadShape]
    ) -> None:
        super().__init__(config, widths, heads)
        settings = config.intermediate
        joint = settings.width * len(widths)
        self.project = nn.ModuleDict({m: nn.Linear(w, settings.width) for m, w in self.pooled.items()})
        self.absent = nn.ParameterDict({m: nn.Parameter(torch.zeros(settings.width)) for m in widths})
        self.gate = nn.Linear(joint, joint) if settings.gated else None
        self.hidden = nn.Linear(joint, settings.hidden)
        self.head = nn.ModuleDict(
            {_key(name): nn.Linear(settings.hidden, shape.num_classes) for name, shape in heads.items()}
        )
        self.apply(init_weights)

    def forward(self, tokens: Mapping[str, Tokens], present: Mapping[str, Tensor]) -> Fused:
        """See `Fusion.forward`."""
        device = next(iter(present.values())).device
        with torch.autocast(device.type, enabled=False):
            vectors = self.vectors(tokens)
            parts = [
                torch.where(present[m][:, None], self.project[m](vectors[m]), self.absent[m])
                for m in self.modalities
            ]
            joint = torch.cat(parts, 1)
            if self.gate is not None:
                joint = joint * self.gate(joint).sigmoid()
            hidden = F.gelu(self.hidden(joint))
            return self._said({name: self.head[_key(name)](hidden) for name in self.heads})


class Early(Fusion):
    """Blocks over the tokens of all modalities and a class token, which the heads read.

    With a bottleneck (MBT) each modality has blocks of its own and sees itself, the class token and the bottleneck,
    which after every layer are the means of what the modalities present made of them.
    """

    def __init__(
        self, config: FusionModelConfig, widths: Mapping[str, int], heads: Mapping[str, HeadShape]
    ) -> None:
        super().__init__(config, widths, heads)
        settings, eps = config.early, config.layer_norm_eps

        def block() -> Block:
            return Block(settings.width, settings.num_heads, 4.0, eps)

        self.norm_tokens = nn.ModuleDict({m: nn.LayerNorm(w, eps=eps) for m, w in widths.items()})
        self.project = nn.ModuleDict({m: nn.Linear(w, settings.width) for m, w in widths.items()})
        self.modality_embed = nn.ParameterDict({m: nn.Parameter(torch.empty(settings.width)) for m in widths})
        self.shared = nn.Parameter(torch.empty(1 + settings.bottleneck, settings.width))
        names = self.modalities if settings.bottleneck else ("all",)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: block() for name in names}) for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(settings.width, eps=eps)
        self.head = nn.ModuleDict(
            {_key(name): nn.Linear(settings.width, shape.num_classes) for name, shape in heads.items()}
        )
        self.apply(init_weights)
        for parameter in (self.shared, *self.modality_embed.values()):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Mapping[str, Tokens], present: Mapping[str, Tensor]) -> Fused:
        """See `Fusion.forward`."""
        parts = {
            m: self.project[m](self.norm_tokens[m](tokens[m].values)) + self.modality_embed[m]
            for m in self.modalities
        }
        masks = {m: tokens[m].mask & present[m][:, None] for m in self.modalities}
        some = parts[self.modalities[0]]
        shared = repeat(self.shared.to(some.dtype), "s d -> b s d", b=len(some))
        if self.config.early.bottleneck:
            shared = self._through_bottleneck(parts, masks, present, shared)
        else:
            shared = self._through_all(parts, masks, shared)
        with torch.autocast(shared.device.type, enabled=False):
            hidden = self.norm(shared[:, 0].float())
            return self._said({name: self.head[_key(name)](hidden) for name in self.heads})

    def _through_all(self, parts: dict[str, Tensor], masks: dict[str, Tensor], shared: Tensor) -> Tensor:
        x = torch.cat([shared, *parts.values()], 1)
        mask = _with_shared(torch.cat(list(masks.values()), 1), shared)
        for layer in self.blocks:
            x = cast(nn.ModuleDict, layer)["all"](x, mask)
        return x[:, : shared.shape[1]]

    def _through_bottleneck(
        self,
        parts: dict[str, Tensor],
        masks: dict[str, Tensor],
        present: Mapping[str, Tensor],
        shared: Tensor,
    ) -> Tensor:
        count = shared.shape[1]
        there = torch.stack([present[m] for m in self.modalities], 1).to(shared.dtype)
        shares = there / there.sum(1, keepdim=True)
        for layer in self.blocks:
            seen = []
            for m in self.modalities:
                block = cast(nn.ModuleDict, layer)[m]
                x = block(torch.cat([shared, parts[m]], 1), _with_shared(masks[m], shared))
                parts[m] = x[:, count:]
                seen.append(x[:, :count])
            shared = torch.einsum("bm,bmsd->bsd", shares, torch.stack(seen, 1))
        return shared


def _with_shared(mask: Tensor, shared: Tensor) -> Tensor:
    """(B, L) -> (B, 1, 1, S + L), true for the shared tokens in front."""
    return F.pad(mask, (shared.shape[1], 0), value=True)[:, None, None]


FUSIONS: dict[str, type[Fusion]] = {"late": Late, "intermediate": Intermediate, "early": Early}
"""By name."""
