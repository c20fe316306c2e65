"""A picture of what the model will see of a set: some clips' frames over their log-mel spectrograms.

Each clip has its id and duration, its labels, frames cut to the model's square with the time at which each is
shown, and the normalised log-mel on a time axis that all clips of the sheet share.
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datasets.decode import SAMPLE_RATE, DecodeError
from datasets.inspect.stored_clips import ClipViewer, SeenClip
from datasets.prepare.fbank_stats import MEL_BINS, log_mel, spread_rows
from datasets.shards.manifest import FbankStats, ShardIndex
from datasets.shards.table import ClipTable

SIDE = 112  # of a frame, in pixels
FRAMES = 4
GAP = 4  # between frames
MARGIN = 16  # around cells
HEADING = 20  # height of the sheet's own line
CAPTION = 36  # height of id and labels
AXIS = 16  # height of a line of times
WIDTH = FRAMES * SIDE + (FRAMES - 1) * GAP
_HEIGHT = CAPTION + SIDE + AXIS + MEL_BINS + AXIS
_COLUMNS = 3
_AXIS_SECONDS = 10.0  # where no clip says how long it is
_STEPS = (
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    20,
    30,
    60,
    120,
    300,
    600,
)  # seconds from a time on the axis to the next
_BLACK, _GREY, _PAPER, _ENDED = (0, 0, 0), (90, 90, 90), (240, 240, 240), (200, 200, 200)
_COLOURS = np.array(  # dark to bright, in even steps
    [(0, 0, 4), (60, 15, 110), (130, 35, 125), (200, 65, 100), (245, 125, 75), (252, 253, 191)], np.float32
)


def contact_sheet(folder: Path, index: ShardIndex, table: ClipTable, num_clips: int) -> Image.Image:
    """A picture of ``num_clips`` clips (at least one), evenly spread over the set.

    Args:
        folder: The set's folder.
        index: Its index; gives the classes' names and the normalisation.
        table: Its table.
        num_clips: How many clips to show.
    """
    seconds = max(float(np.median(table.durations[:100_000])) or _AXIS_SECONDS, 1.0)
    cells = []
    with closing(ClipViewer(folder, table)) as viewer:
        for row in spread_rows(len(table), num_clips):
            labels = ", ".join(index.labels[i].name for i in table.labels(row))
            try:
                seen = viewer.see(row, FRAMES, SIDE)
            except DecodeError as error:
                seen = str(error)
            cells.append(_cell(table.id(row), labels, seen, index.fbank, seconds))
    rows, columns = math.ceil(len(cells) / _COLUMNS), min(_COLUMNS, len(cells))
    size = (columns * (WIDTH + MARGIN) + MARGIN, HEADING + rows * (_HEIGHT + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    sound = "sound: log-mel, 20 Hz at the bottom to 8 kHz, grey after its end"
    heading = f"{folder.resolve().name}: {len(cells)} of {len(table)} clips; {sound}"
    _write(ImageDraw.Draw(sheet), MARGIN, MARGIN // 2, heading, size[0] - 2 * MARGIN)
    for i, cell in enumerate(cells):
        row, column = divmod(i, _COLUMNS)
        at = (MARGIN + column * (WIDTH + MARGIN), HEADING + MARGIN + row * (_HEIGHT + MARGIN))
        sheet.paste(cell, at)
    return sheet


def _cell(
    name: str, labels: str, seen: SeenClip | str, fbank: FbankStats | None, seconds: float
) -> Image.Image:
    """One clip: id, duration and labels; frames and their times; spectrogram and its time axis; or what is wrong."""
    cell = Image.new("RGB", (WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(cell)
    _write(draw, 3, 17, labels, WIDTH - 6, _GREY)
    if isinstance(seen, str):
        _write(draw, 3, 1, name, WIDTH - 6)
        _write(draw, 3, CAPTION, seen, WIDTH - 6, (200, 0, 0))
        return cell
    waveform, pictures, times = seen
    length = "no sound" if waveform is None else f"{len(waveform) / SAMPLE_RATE:.1f} s"
    if waveform is not None and len(waveform) > (seconds + 0.1) * SAMPLE_RATE:
        length += f", {seconds:.1f} s shown"
    taken = _write(draw, WIDTH - 3, 1, length, WIDTH, anchor="ra")
    _write(draw, 3, 1, name, WIDTH - taken - 16)
    for i, picture in enumerate(pictures):
        left = i * (SIDE + GAP)
        cell.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (left, CAPTION))
        if times:
            _write(draw, left + SIDE // 2, CAPTION + SIDE, f"{times[i]:.1f} s", SIDE, _GREY, "ma")
    if waveform is not None:
        top = CAPTION + SIDE + AXIS
        cell.paste(_spectrogram(waveform, fbank, seconds), (0, top))
        _time_axis(draw, top + MEL_BINS, seconds)
    return cell


def _spectrogram(waveform: Tensor, fbank: FbankStats | None, seconds: float) -> Image.Image:
    """The normalised log-mel, low frequencies at the bottom; grey where the clip has ended."""
    values = log_mel(waveform)
    mean, std = (fbank.mean, fbank.std) if fbank else (values.mean().item(), values.std().item())
    # From two standard deviations below the mean to two above it.
    shades = (((values - mean) / max(std, 1e-6) + 2.0) / 4.0).clamp(0, 1).T.flip(0).numpy()
    steps = np.arange(len(_COLOURS))
    channels = [np.interp(shades * (len(_COLOURS) - 1), steps, _COLOURS[:, c]) for c in range(3)]
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    shown = min(max(round(WIDTH * len(waveform) / SAMPLE_RATE / seconds), 1), WIDTH)
    if len(waveform) > seconds * SAMPLE_RATE:
        picture = picture.crop((0, 0, round(picture.width * seconds * SAMPLE_RATE / len(waveform)), MEL_BINS))
    canvas = Image.new("RGB", (WIDTH, MEL_BINS), _ENDED)
    canvas.paste(picture.resize((shown, MEL_BINS), Image.Resampling.BILINEAR), (0, 0))
    return canvas


def _time_axis(draw: ImageDraw.ImageDraw, top: int, seconds: float) -> None:
    """Ticks with their times, no more than some ten."""
    step = next((step for step in _STEPS if seconds / step <= 10), seconds)
    for i in range(math.floor(seconds / step + 1e-6) + 1):
        x = min(round(WIDTH * i * step / seconds), WIDTH - 1)
        draw.line([(x, top), (x, top + 3)], fill=_GREY)
        # The first and the last would otherwise lie half outside.
        anchor = "la" if x == 0 else "ra" if x > WIDTH - 16 else "ma"
        _write(draw, x, top + 2, f"{i * step:g} s" if i == 0 else f"{i * step:g}", WIDTH, _GREY, anchor)


def _write(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    room: float,
    fill: tuple[int, int, int] = _BLACK,
    anchor: str = "la",
) -> int:
    """Writes one line, shortened to ``room`` pixels; returns its width."""
    font = ImageFont.load_default(13)
    text = text.encode("ascii", "replace").decode()  # what the built-in font can draw
    text = "".join(character if character.isprintable() else "?" for character in text)
    if font.getlength(text) > room:
        while text and font.getlength(text + "...") > room:
            text = text[:-1]
        text += "..."
    draw.text((x, y), text, fill=fill, font=font, anchor=anchor)
    return math.ceil(font.getlength(text))
