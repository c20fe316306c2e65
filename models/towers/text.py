"""Towers for text: BERT and RoBERTa with their tokenizer from a folder of transformers, and a small one of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.blocks import Block, init_weights
from models.towers.base import TextTower, Tokens, Words
from models.towers.folders import import_transformers, keep_folder, open_folder

TEXT = ("bert", "roberta")
_TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))


class FolderTextTower(TextTower):
    """BERT or RoBERTa: the tokens of the last layer, the first of which is the class token.

    A pooler is not used: checkpoints of masked language models have none.

    Args:
        model: Of transformers, without a pooler.
        tokenizer: From the same folder.
        max_length: Pieces of a text that are read, the marks at both ends included; what is longer is cut.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_length: int) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        config: Any = model.config
        self.width = config.hidden_size
        # RoBERTa counts positions from behind the one for padding.
        first_position = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        self.max_length = min(max_length, config.max_position_embeddings - first_position)

    @classmethod
    def open(cls, folder: Path, max_length: int, *, weights: bool = True) -> FolderTextTower:
        """The tower in a folder; see `open_folder`.

        Raises:
            ValueError: The folder has no tokenizer either, or one that is not the model's.
        """
        model, _ = open_folder(folder, TEXT, weights=weights, add_pooling_layer=False)
        return cls(model, open_tokenizer(folder, model), max_length)

    def keep(self, folder: Path) -> None:
        """See `Tower.keep`."""
        keep_folder(folder, self.model, {})
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, texts: Sequence[str | None]) -> Words:
        """See `TextTower.tokenize`."""
        given = [text or "" for text in texts]
        found = self.tokenizer(
            given, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return Words(found["input_ids"], found["attention_mask"].bool())

    def forward(self, inputs: Words) -> Tokens:
        """Tokens of the grid (L,)."""
        # The mask in four dimensions is taken as it is; in two, transformers would read it on the host.
        mask = inputs.mask[:, None, None].expand(-1, -1, inputs.mask.shape[1], -1)
        values = self.model(inputs.ids, attention_mask=mask).last_hidden_state
        return Tokens(values, inputs.mask, (values.shape[1],), values[:, 0])


def open_tokenizer(folder: Path, model: nn.Module) -> Any:
    """The tokenizer in a folder.

    Raises:
        ValueError: There is none, or its vocabulary is not the model's. (transformers would make an empty one, to which
            every word is unknown.)
    """
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        wanted = ", or ".join(" and ".join(names) for names in _TOKENIZERS)
        raise ValueError(
            f"{folder} has no tokenizer ({wanted}): put the files of the model's own into it, as transformers' "
            "tokenizer.save_pretrained writes them"
        )
    transformers = import_transformers(folder)
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no tokenizer that can be read: {error}") from None
    config: Any = model.config
    words = len(tokenizer) - len(set(tokenizer.all_special_ids))
    if words < 1 or len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} pieces, {words} of them words, and the model embeds "
            f"{config.vocab_size}: it is another model's tokenizer"
        )
    return tokenizer


class ByteTower(TextTower):
    """A small transformer over the bytes of a text, randomly initialised.

    Args:
        width: D, a multiple of 8.
        depth: Blocks.
        max_length: Bytes of a text that are read.
    """

    #: Places in the vocabulary behind the 256 bytes: padding, and the token in front of every text.
    PADDING, FIRST = 256, 257

    def __init__(self, width: int, depth: int, max_length: int) -> None:
        super().__init__()
        self.width, self.max_length = width, max_length
        self.embed = nn.Embedding(258, width)
        self.pos_embed = nn.Parameter(torch.empty(max_length + 1, width))
        self.blocks = nn.ModuleList(Block(width, max(1, width // 32), 2.0, 1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(init_weights)
        nn.init.normal_(self.embed.weight, std=0.5)
        nn.init.normal_(self.pos_embed, std=0.5)

    def tokenize(self, texts: Sequence[str | None]) -> Words:
        """See `TextTower.tokenize`."""
        rows = [
            torch.tensor([self.FIRST, *(text or "").encode("utf-8", "replace")[: self.max_length]])
            for text in texts
        ]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.PADDING)
        return Words(ids, ids != self.PADDING)

    def forward(self, inputs: Words) -> Tokens:
        """Tokens of the grid (1 + L,), the first of which is the class token."""
        x = self.embed(inputs.ids) + self.pos_embed[: inputs.ids.shape[1]]
        mask = inputs.mask[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        values: Tensor = self.norm(x)
        return Tokens(values, inputs.mask, (values.shape[1],), values[:, 0])
