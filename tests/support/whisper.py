"""A tiny Whisper of random weights with its tokenizer, as transformers writes them; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from models.towers.folders import import_transformers


def write_whisper(folder: Path) -> Path:
    """Writes model, feature extractor and byte-level tokenizer into a new folder; it says nonsense of a few letters."""
    transformers = import_transformers("this test")

    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["Ġ"]
    vocabulary = {
        token: number for number, token in enumerate([*letters, "<|endoftext|>", "<|startoftranscript|>"])
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end, start = vocabulary["<|endoftext|>"], vocabulary["<|startoftranscript|>"]
    tokenizer = transformers.WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=12, init_std=1.0,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start, suppress_tokens=[],
        begin_suppress_tokens=[end],
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 6
    model.save_pretrained(folder)
    return folder
