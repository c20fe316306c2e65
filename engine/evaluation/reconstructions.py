"""Pictures for a person to look at: what went in, what was kept of it, what the model made of it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from datasets.batch import AVBatch
from engine.objectives.cav_mae import CavMae

# Black, violet, red, orange, pale yellow: brightness rises with the value.
_COLOURS = torch.tensor(
    [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]],
    dtype=torch.float32,
)
_GAP = 4
_HEADER = 14


@torch.no_grad()
def reconstructions(objective: CavMae, batch: AVBatch) -> dict[str, Tensor]:
    """Frames and spectrograms as given, as masked, and as reconstructed.

    Args:
        objective: In evaluation mode, with a reconstruction weight above 0.
        batch: B clips on the model's device.

    Returns:
        ``frames`` and ``spectrograms``, each (3, H, W) uint8 on the CPU: a row a clip; input, what the mask leaves,
        reconstruction (removed patches as predicted, with the true patches' mean and deviation where the target
        is normalised; kept patches as they were).
    """
    model = objective.model
    fbank, frames = objective.inputs(batch)
    output = objective.reconstruct(fbank, frames, batch.seeds)
    assert output.pred_audio is not None
    assert output.pred_visual is not None
    norm_pix = model.config.norm_pix_loss
    audio, audio_kept = _paste(model.patchify_audio(fbank), output.pred_audio, output.mask_audio, norm_pix)
    visual, visual_kept = _paste(
        model.patchify_visual(frames), output.pred_visual, output.mask_visual, norm_pix
    )
    picture = objective.visual_front_end.invert
    frame_columns = [
        picture(x) for x in (frames, model.unpatchify_visual(visual_kept), model.unpatchify_visual(visual))
    ]
    low, high = fbank.flatten(1).quantile(0.01, dim=1), fbank.flatten(1).quantile(0.995, dim=1)
    spectrograms = (fbank, model.unpatchify_audio(audio_kept), model.unpatchify_audio(audio))
    spectrogram_columns = [colour_spectrogram(x, low, high) for x in spectrograms]
    share = 1 - output.mask_visual.mean().item(), 1 - output.mask_audio.mean().item()
    return {
        "frames": grid(frame_columns, ["input", f"kept {share[0]:.0%}", "reconstruction"]),
        "spectrograms": grid(spectrogram_columns, ["input", f"kept {share[1]:.0%}", "reconstruction"]),
    }


def _paste(target: Tensor, prediction: Tensor, mask: Tensor, norm_pix: bool) -> tuple[Tensor, Tensor]:
    """(B, L, P) reconstruction with kept patches as they were, and the kept patches on a dark ground."""
    if norm_pix:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        prediction = prediction.float() * (variance + 1e-6).sqrt() + mean
    removed = mask.unsqueeze(-1).bool()
    ground = target.amin(dim=(1, 2), keepdim=True).expand_as(target)
    return torch.where(removed, prediction.float(), target), torch.where(removed, ground, target)


def colour_spectrogram(fbank: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(B, T, F) -> (B, 3, F, T) uint8, low frequencies at the bottom; ``low`` and ``high`` (B,) are black and white."""
    low, high = low[:, None, None], high[:, None, None]
    position = ((fbank - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * (len(_COLOURS) - 1)
    below = position.long().clamp(max=len(_COLOURS) - 2)
    colours = _COLOURS.to(fbank.device)
    share = (position - below).unsqueeze(-1)
    coloured = colours[below] * (1 - share) + colours[below + 1] * share
    return coloured.round().byte().permute(0, 3, 2, 1).flip(2)


def grid(columns: list[Tensor], titles: list[str]) -> Tensor:
    """Columns of pictures under their titles.

    Args:
        columns: Each (B, 3, H, W) uint8.
        titles: One for each column.

    Returns:
        (3, H', W') uint8 on the CPU.
    """
    height, width = columns[0].shape[2:]
    sheet = Image.new(
        "RGB",
        (len(columns) * (width + _GAP) + _GAP, _HEADER + len(columns[0]) * (height + _GAP) + _GAP),
        (40, 40, 40),
    )
    draw = ImageDraw.Draw(sheet)
    for i, (pictures, title) in enumerate(zip(columns, titles, strict=True)):
        left = _GAP + i * (width + _GAP)
        draw.text((left, 1), title, fill=(230, 230, 230))
        for j, picture in enumerate(pictures.cpu()):
            pixels = Image.fromarray(picture.permute(1, 2, 0).numpy())
            sheet.paste(pixels, (left, _HEADER + j * (height + _GAP)))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()
