"""Pictures of an evaluation: bars by class, the confusion matrix, the worst errors, what was retrieved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from engine.evaluation.reconstructions import colour_spectrogram

_GROUND, _TEXT, _BAR, _GOOD = (40, 40, 40), (230, 230, 230), (240, 150, 60), (90, 200, 110)
_ROW, _GAP = 14, 4
#: Characters of a class's name that are shown.
_LONGEST = 36
#: Rows in the picture of bars; where there are more classes, the best and the worst halves.
_MOST_BARS = 60
#: Least side of a cell of the confusion matrix that has room for a number.
_NUMBERED = 22
#: Classes up to which the confusion matrix has names.
_MOST_NAMES = 40


def per_class_bars(table: list[dict[str, Any]], kind: str) -> Tensor:
    """Average precision of each class as a bar, the best first.

    Args:
        table: ``per_class`` of the report.
        kind: What it is of, such as ``audio_visual``.

    Returns:
        (3, H, W) uint8.
    """
    rows = sorted(
        (row for row in table if row["average_precision"] is not None),
        key=lambda row: -row["average_precision"],
    )
    title = f"average precision by class (clips), {kind}"
    if len(rows) > _MOST_BARS:
        title += f"; the best and the worst {_MOST_BARS // 2} of {len(rows)}"
        rows = rows[: _MOST_BARS // 2] + rows[-_MOST_BARS // 2 :]
    names = [f"{_one_line(row['class'])[:_LONGEST]} ({row['positives']})" for row in rows]
    left = _width(names) + 2 * _GAP
    size = max(left + 320, _width([title]) + 2 * _GAP), (1 + len(rows)) * _ROW + 2 * _GAP
    sheet = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill=_TEXT)
    for i, (name, row) in enumerate(zip(names, rows, strict=True), 1):
        top = _GAP + i * _ROW
        draw.text((_GAP, top), name, fill=_TEXT)
        width = round(260 * row["average_precision"])
        draw.rectangle((left, top + 2, left + width, top + _ROW - 3), fill=_BAR)
        draw.text((left + width + _GAP, top), f"{row['average_precision']:.3f}", fill=_TEXT)
    return _tensor(sheet)


def confusion_picture(matrix: Tensor, classes: list[str], kind: str) -> Tensor:
    """Rows are the true classes, columns what was said; brightness and number are the share of the row in per cent.

    Args:
        matrix: (C, C) counts.
        classes: Names.
        kind: What it is of, such as ``audio_visual``.

    Returns:
        (3, H, W) uint8.
    """
    share = matrix.float() / matrix.sum(1, keepdim=True).clamp_min(1)
    cell = max(1, min(28, 900 // len(matrix)))
    zero, one = torch.zeros(1), torch.ones(1)
    # As a spectrogram of "frames" = columns and "bins" = rows from the bottom.
    coloured = colour_spectrogram(share.flip(0).T[None], zero, one)[0]
    pixels = _image(coloured.repeat_interleave(cell, 1).repeat_interleave(cell, 2))
    title = f"row: true class, column: said; per cent of the row, {kind}"
    names = [_one_line(name)[:_LONGEST] for name in classes] if len(classes) <= _MOST_NAMES else []
    left = _width(names) + 2 * _GAP
    top = _ROW + left
    size = max(left + pixels.width, _width([title])) + 2 * _GAP, top + pixels.height + _GAP
    sheet = Image.new("RGB", size, _GROUND)
    sheet.paste(pixels, (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 0), title, fill=_TEXT)
    upwards = Image.new("RGB", (left - _GAP, pixels.width), _GROUND)
    for i, name in enumerate(names):
        middle = i * cell + cell // 2 - 6
        draw.text((_GAP, top + middle), name, fill=_TEXT)
        ImageDraw.Draw(upwards).text((0, middle), name, fill=_TEXT)
        for j, value in enumerate((100 * share[i]).round().int().tolist() if cell >= _NUMBERED else ()):
            if value:
                ink = _GROUND if value > 70 else _TEXT  # high shares are bright
                draw.text((left + j * cell + 4, top + middle), str(value), fill=ink)
    # Rotated to the left, the columns' names run upwards.
    sheet.paste(upwards.transpose(Image.Transpose.ROTATE_90), (left, _ROW + _GAP))
    return _tensor(sheet)


def error_sheet(frames: Tensor, fbank: Tensor, captions: list[str]) -> Tensor:
    """A row a clip: its frame, its spectrogram, a line of text.

    Args:
        frames: (n, 3, H, W) uint8.
        fbank: (n, T, F).
        captions: n lines.

    Returns:
        (3, H', W') uint8.
    """
    captions = [_one_line(caption) for caption in captions]
    sounds = _spectrograms(fbank, frames.shape[2])
    width = max(frames.shape[3] + sounds.shape[3] + 3 * _GAP, _width(captions) + 2 * _GAP)
    height = frames.shape[2] + _ROW + _GAP
    sheet = Image.new("RGB", (width, len(frames) * height + _GAP), _GROUND)
    draw = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        top = _GAP + i * height
        draw.text((_GAP, top), caption, fill=_TEXT)
        sheet.paste(_image(frames[i]), (_GAP, top + _ROW))
        sheet.paste(_image(sounds[i]), (2 * _GAP + frames.shape[3], top + _ROW))
    return _tensor(sheet)


def retrieval_sheet(fbank: Tensor, own: Tensor, found: Tensor, hits: Tensor) -> Tensor:
    """A row a query: its spectrogram, its own frame, and the frames found, the right one framed.

    Args:
        fbank: (n, T, F) the queries' sound.
        own: (n, 3, H, W) uint8, their frames.
        found: (n, k, 3, H, W) uint8, the best first.
        hits: (n, k) bool, whether it is the query's own clip.

    Returns:
        (3, H', W') uint8.
    """
    height, width = own.shape[2:]
    sounds = _spectrograms(fbank, height)
    first = sounds.shape[3] + 2 * _GAP
    titles = ["sound asked for", "its frame", *(f"found {i + 1}" for i in range(found.shape[1]))]
    lefts = [_GAP, *(first + i * (width + _GAP) for i in range(1 + found.shape[1]))]
    sheet = Image.new("RGB", (lefts[-1] + width + _GAP, _ROW + len(own) * (height + _GAP)), _GROUND)
    draw = ImageDraw.Draw(sheet)
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, 1), title, fill=_TEXT)
    for i in range(len(own)):
        top = _ROW + i * (height + _GAP)
        sheet.paste(_image(sounds[i]), (lefts[0], top))
        sheet.paste(_image(own[i]), (lefts[1], top))
        for j, left in enumerate(lefts[2:]):
            sheet.paste(_image(found[i, j]), (left, top))
            if hits[i, j]:
                draw.rectangle(
                    (left - 2, top - 2, left + width + 1, top + height + 1), outline=_GOOD, width=3
                )
    return _tensor(sheet)


def _spectrograms(fbank: Tensor, height: int) -> Tensor:
    """(n, T, F) -> (n, 3, height, W) uint8."""
    flat = fbank.flatten(1)
    coloured = colour_spectrogram(fbank, flat.quantile(0.01, dim=1), flat.quantile(0.995, dim=1))
    width = max(1, round(coloured.shape[3] * height / coloured.shape[2]))
    return F.interpolate(coloured.float(), (height, min(width, 4 * height))).byte()


def _one_line(text: str) -> str:
    """``text`` with spaces for whatever ends a line, which class names and ids may hold."""
    return " ".join(text.splitlines())


def _width(lines: list[str]) -> int:
    """Pixels that the longest line takes."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return round(max((draw.textlength(line) for line in lines), default=0))


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def _tensor(sheet: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()
