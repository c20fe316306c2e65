"""Tiny random models as transformers and torchvision write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.towers.folders import import_transformers

transformers = import_transformers("this test")
_SIZE: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
_WAVE: dict[str, Any] = {
    **_SIZE, "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (40, 4, 2),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_FILM: dict[str, Any] = {**_SIZE, "image_size": 32, "patch_size": 16, "num_frames": 4}
WORDS = [
    "the",
    "film",
    "was",
    "lovely",
    "awful",
    "we",
    "saw",
    "it",
    "again",
    "and",
    "truly",
    "to",
    "day",
    "##ly",
    "good",
    "bad",
]


def save_wave(folder: Path, kind: str = "Wav2Vec2", **settings: Any) -> Path:
    """Wav2Vec2 or Hubert, by default one whose first layer normalises over time."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**_WAVE, **settings)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    """DINOv2 of patches of 16 pixels."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**_SIZE, image_size=32, patch_size=16)
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def save_film(folder: Path, kind: str = "VideoMAE") -> Path:
    """VideoMAE or Timesformer of 4 frames of 32 pixels."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**_FILM)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder


def save_text(folder: Path, kind: str = "Bert", tokenizer: bool = True, **settings: Any) -> Path:
    """BERT, or RoBERTa, with a tokenizer trained in memory."""
    torch.manual_seed(0)
    positions = {"vocab_size": 64, "max_position_embeddings": 24}
    config = getattr(transformers, f"{kind}Config")(**_SIZE, **positions, **settings)
    getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False).save_pretrained(folder)
    if not tokenizer:
        return folder
    if kind == "Bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
        raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        names = dict(
            zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), specials, strict=True)
        )
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw, cls_token="<s>", sep_token="</s>", **names
        ).save_pretrained(folder)
    return folder
