"""Text for clips of which nobody wrote down what is said: a local Whisper through transformers (optional)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import AVBatch
from datasets.media.container import SAMPLE_RATE
from models.towers.folders import import_transformers, read_settings

#: What Whisper hears at a time; longer sounds are transcribed piece by piece.
_SECONDS = 30


class Transcriber(nn.Module):
    """Whisper, which writes down what is said. Each clip is heard by itself, so the same sound gives the same text.

    Args:
        folder: What transformers' ``save_pretrained`` wrote, of the model and of its processor. Nothing is downloaded.

    Raises:
        ValueError: transformers is missing, or the folder holds no Whisper or not all of it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        transformers = import_transformers("--whisper")
        kind = read_settings(folder / "config.json").get("model_type")
        if kind != "whisper":
            raise ValueError(f"--whisper {folder} is no folder of a Whisper that transformers wrote")
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(f"{folder} lacks the tokenizer: save Whisper's processor into it too")
        local: dict[str, Any] = {"local_files_only": True}
        try:
            self._processor: Any = transformers.WhisperProcessor.from_pretrained(folder, **local)
            model, loading = transformers.WhisperForConditionalGeneration.from_pretrained(
                folder, weights_only=True, output_loading_info=True, **local
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} can't be opened as a Whisper: {str(error).splitlines()[0]}"
            ) from error
        if loading["missing_keys"]:
            raise ValueError(
                f"{folder} lacks weights of the model, such as {sorted(loading['missing_keys'])[0]}"
            )
        self.model: Any = model.eval()

    @torch.no_grad()
    def forward(self, batch: AVBatch) -> AVBatch:
        """The batch with text for those of its clips that have sound and no text."""
        if batch.waveform is None or batch.num_samples is None:
            return batch
        texts = list(batch.text or [None] * len(batch))
        for row, length in enumerate(batch.num_samples.tolist()):
            if texts[row] is None and length:
                texts[row] = self._write_down(batch.waveform[row, :length]) or None
        return replace(batch, text=texts)

    def _write_down(self, waveform: Tensor) -> str:
        pieces = (waveform.float() / 32768).cpu().split(_SECONDS * SAMPLE_RATE)
        sounds = [piece.numpy() for piece in pieces]
        heard = self._processor(sounds, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with torch.autocast(self.model.device.type, enabled=False):
            ids = self.model.generate(
                heard.to(self.model.device)
            )  # by its own generation_config, else greedily
        said = self._processor.batch_decode(ids, skip_special_tokens=True)
        return " ".join(" ".join(said).split())
