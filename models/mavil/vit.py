"""A plain ViT's tensors (ImageNet MAE, timm) in the place of MAViL's: `models.weights.timm_vit` for this family.

Both towers get all the ViT's blocks and its CLS token; fusion blocks are new. The embedding of a tubelet is the
picture's, shared among its frames, so that a film of one picture is embedded as that picture. Positions stay the fixed
ones of our own grids. A MAE's decoder serves both decoders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.mavil.config import MavilModelConfig
from models.weights.timm_vit import Pulled, vit_block, vit_patch

_BLOCKS = re.compile(r"encoder\.(?:audio|visual)\.(blocks\..+)")
_PATCH = re.compile(r"encoder\.(audio|visual)\.patch_embed\.(weight|bias)")
_DECODER = [
    (re.compile(r"decoder\.(?:audio|visual)\.blocks\.(.+)"), "decoder_blocks.{0}"),
    (re.compile(r"decoder\.(?:audio|visual)\.(embed|norm)\.(weight|bias)"), "decoder_{0}.{1}"),
    (re.compile(r"decoder\.(?:audio|visual)\.mask_token"), "mask_token"),
    (re.compile(r"decoder\.visual\.pred\.(weight|bias)"), "decoder_pred.{0}"),
]
_WHY_ANEW = [
    (re.compile(r"encoder\.fusion\..+"), "a ViT has no fusion blocks"),
    (re.compile(r"encoder\.\w+\.cls_token"), "it has no CLS token"),
    (re.compile(r".+\.pos_embed"), "fixed positions of its own grid"),
    (re.compile(r"decoder\.audio\.pred\..+"), "its decoder predicts pictures"),
    (re.compile(r"decoder\.\w+\.pred_features\..+"), "its decoder predicts no features"),
]
_WHY_IGNORED = [
    (re.compile(r"(fc_)?norm\..+"), "our towers have no last norm"),
    (re.compile(r"(decoder_)?pos_embed"), "our positions are fixed ones of our own grids"),
    (re.compile(r"dist_token|head\..+|head_dist\..+"), "for classes of its own"),
]


def pull(name: str, state: Mapping[str, Tensor], config: MavilModelConfig) -> Pulled | None:
    """See `timm_vit.pull`."""
    if match := _BLOCKS.fullmatch(name):
        return vit_block(match.group(1), state, None)
    if match := _PATCH.fullmatch(name):
        found = vit_patch(*match.groups(), state=state)
        if found is None or match.groups() != ("visual", "weight"):
            return found
        return found[0], found[1].repeat(1, config.tubelet) / config.tubelet, "shared among frames"
    if re.fullmatch(r"encoder\.(audio|visual)\.cls_token", name):
        return _cls_token(state)
    for pattern, template in _DECODER:
        if match := pattern.fullmatch(name):
            source = template.format(*match.groups())
            return _decoder_tensor(source, state, config)
    return None


def _cls_token(state: Mapping[str, Tensor]) -> Pulled | None:
    if "cls_token" not in state:
        return None
    token, positions = state["cls_token"][0, 0], state.get("pos_embed")
    side = 0 if positions is None else int((positions.shape[1] - 1) ** 0.5)
    if positions is None or side * side != positions.shape[1] - 1:
        return "cls_token", token, None
    return "cls_token", token + positions[0, 0], "with its position"


def _decoder_tensor(source: str, state: Mapping[str, Tensor], config: MavilModelConfig) -> Pulled | None:
    value = state.get(source)
    if value is None:
        return None
    if source.startswith("decoder_pred."):
        return source, value.repeat(config.tubelet, *[1] * (value.ndim - 1)), "the same for each frame"
    return source, value.flatten() if source == "mask_token" else value, None


def why_anew(name: str) -> str | None:
    """See `timm_vit.why_anew`."""
    return next((why for pattern, why in _WHY_ANEW if pattern.fullmatch(name)), None)


def why_ignored(name: str) -> str | None:
    """See `timm_vit.why_ignored`."""
    return next((why for pattern, why in _WHY_IGNORED if pattern.fullmatch(name)), None)
