"""Whether a file holds the weights of one of timm's ViTs, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch

from models.weights.errors import WeightsError
from models.weights.tensor_files import TensorFile

#: What a folder's config.json may tell timm: a ViT's sizes, nothing that names a file or a function.
_TIMM_ARGUMENTS = frozenset(
    {
        "img_size", "in_chans", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "class_token",
        "global_pool", "fc_norm", "num_classes", "qkv_bias", "qk_norm", "init_values", "reg_tokens", "no_embed_class",
        "pre_norm", "final_norm", "drop_rate", "drop_path_rate", "dynamic_img_size",
    }
)  # fmt: skip


def _is_plain(value: Any) -> bool:
    """Whether a setting is a number of reasonable size, a short word, or a few of them."""
    if isinstance(value, list | tuple):
        return len(value) <= 8 and all(_is_plain(item) and not isinstance(item, list) for item in value)
    if isinstance(value, str):
        return len(value) <= 100
    return value is None or (isinstance(value, int | float) and abs(value) <= 65_536)


def _is_plain_argument(name: str, value: Any) -> bool:
    return _is_plain(value) and not (name == "depth" and isinstance(value, int | float) and value > 256)


def check_timm_names(name: str, model_args: Mapping[str, Any], file: TensorFile) -> int:
    """Checks that a file holds exactly the weights of a timm ViT; only its head may differ.

    Args:
        name: The model; a tag (``vit_base_patch16_224.augreg_in21k``) names weights of it, which are in the file.
        model_args: Sizes that the file's folder gives.
        file: The weights.

    Returns:
        The number of attention heads.

    Raises:
        WeightsError: There is no such model, it is no ViT, or the file does not hold it.
    """
    if name.partition(".")[0] not in timm.list_models() or (
        "." in name and not timm.is_model_pretrained(name)
    ):
        raise WeightsError(f"timm has no model {name!r}; see timm.list_models('vit_*')")
    unknown = sorted(str(key) for key in model_args if key not in _TIMM_ARGUMENTS)
    if unknown or not all(_is_plain_argument(name, value) for name, value in model_args.items()):
        raise WeightsError(
            f"{file.path.with_name('config.json')}: model_args may hold sizes of a ViT alone"
            + (f", not {', '.join(unknown)[:200]}" if unknown else "")
        )
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, **model_args)
    except Exception as error:  # timm checks none of its arguments
        reason = str(error) or type(error).__name__
        raise WeightsError(
            f"{file.path.with_name('config.json')}: timm can't make {name} with these model_args: {reason[:200]}"
        ) from error
    blocks = getattr(model, "blocks", None)
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None  # type: ignore[index]
    if heads is None:
        raise WeightsError(f"timm's {name} is no ViT: it has no blocks of attention and MLP")
    own, given = (
        {key for key in names if not key.startswith("head")} for names in (model.state_dict(), file.tensors)
    )
    if own != given:
        raise WeightsError(
            f"{file.path} does not hold timm's {name}: missing {sorted(own - given) or 'nothing'}, "
            f"unknown {sorted(given - own) or 'nothing'}"
        )
    return heads
