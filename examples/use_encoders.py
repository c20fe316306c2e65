"""Which sound belongs to this picture? Trained encoders in a few cells, and a page to look at and listen to.

Run it whole from the repository's root::

    python -m examples.use_encoders runs/demo/pretrain data/demo/world/test page.html

or cell by cell in an editor that knows ``# %%``.
"""

from __future__ import annotations

# %% Settings: a model, a folder of videos, the page to write, and pictures to ask with.
import argparse
import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from atomic import check_writable, write_atomically
from datasets.batch import Clip, Ticket, collate
from datasets.decode import SAMPLE_RATE, DecodeError, decode_frame
from engine.embed.embedder import EarsightEmbedder
from engine.inference.sources import ReadSettings, open_source
from home_paths import command_line
from models import PretrainedEncoders, load_pretrained
from terminal import show_control_characters

parser = argparse.ArgumentParser(
    prog="python -m examples.use_encoders", description=(__doc__ or "").split("\n")[0]
)
parser.add_argument("model", help="a run, a checkpoint or an exported model")
parser.add_argument("videos", type=Path, help="a folder of videos")
parser.add_argument("page", type=Path, help="the HTML page to write")
parser.add_argument(
    "--pictures", type=Path, nargs="*", default=[], help="pictures to ask with; without any, frames"
)
parser.add_argument("--clips", type=int, default=100, help="how many of the videos to listen to, at most")
parser.add_argument("--questions", type=int, default=6, help="how many frames to ask with")
parser.add_argument("--answers", type=int, default=4, help="how many sounds to show")


# %% Reading: each video's sound and middle frame, and pictures at the model's size.
@dataclass(frozen=True)
class Question:
    """A picture, and the clip whose frame it is, if any."""

    name: str
    picture: Tensor
    clip: int | None = None


def read_clips(encoders: PretrainedEncoders, folder: Path, count: int) -> list[Clip]:
    """At most ``count`` videos, evenly spaced over the folder; those that can't be read are left out."""
    source = open_source(str(folder), EarsightEmbedder(encoders).needs, ReadSettings(only="video"))
    count = min(count, source.count)
    items = (source.clips[Ticket(i * source.count // count, 0)] for i in range(count))
    return [item for item in items if isinstance(item, Clip)]


def read_picture(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8: the centre square of a JPEG or PNG.

    Raises:
        ValueError: It can't be decoded, or is of another kind, whatever its name.
    """
    try:
        return decode_frame(bytearray(path.read_bytes()), size)
    except DecodeError as error:
        raise ValueError(f"{path}: {error}") from error


# %% Embedding and retrieval: one call for the sounds, one for the pictures, and a product.
@torch.no_grad()
def similarities(
    encoders: PretrainedEncoders, questions: Sequence[Question], clips: Sequence[Clip]
) -> Tensor:
    """(questions, clips) cosines between pictures and sounds."""
    batch = collate(clips, encoders.fbank.num_samples, num_classes=0)
    audio = encoders(batch.waveform, batch.num_samples).audio
    visual = encoders(frames=torch.stack([question.picture for question in questions])).visual
    return F.normalize(visual, dim=1) @ F.normalize(audio, dim=1).T


# %% The page: each picture, and beside it the sounds that suit it best, with the frames they come from.
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222 }
section { display: flex; flex-wrap: wrap; gap: 1rem; padding: 1rem 0; border-top: 1px solid #ddd }
figure { margin: 0; width: 12rem } img { width: 12rem; height: 12rem; border-radius: 6px }
audio { width: 100%; height: 2rem } figcaption { overflow-wrap: anywhere; font-size: 13px }
.question img { outline: 4px solid #2563eb } .right img { outline: 4px solid #16a34a }
"""


def data_uri(kind: str, data: bytes) -> str:
    """The bytes within the page itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_tag(picture: Tensor) -> str:
    """An ``img`` of (3, H, W) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return f'<img alt="" src="{data_uri("image/png", buffer.getvalue())}">'


def player_tag(waveform: Tensor) -> str:
    """An ``audio`` of (S,) int16."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return f'<audio controls preload="metadata" src="{data_uri("audio/wav", buffer.getvalue())}"></audio>'


def section(question: Question, scores: Tensor, clips: Sequence[Clip], answers: int) -> str:
    """One question with its best answers, and where its own sound came in."""
    order = scores.argsort(descending=True).tolist()
    caption = html.escape(question.name)
    if question.clip is not None:
        caption += f"<br>own sound: rank {order.index(question.clip) + 1} of {len(order)}"
    figures = [
        f'<figure class="question">{picture_tag(question.picture)}<figcaption>{caption}</figcaption></figure>'
    ]
    for place, row in enumerate(order[:answers], start=1):
        clip = clips[row]
        assert clip.frames is not None
        assert clip.waveform is not None
        text = f"{place}. {html.escape(clip.id)} ({scores[row]:.2f})"
        kind = ' class="right"' if row == question.clip else ""
        figures.append(
            f"<figure{kind}>{picture_tag(clip.frames[0])}{player_tag(clip.waveform)}"
            f"<figcaption>{text}</figcaption></figure>"
        )
    return f"<section>{''.join(figures)}</section>"


def render(questions: Sequence[Question], scores: Tensor, clips: Sequence[Clip], answers: int) -> str:
    """The whole page."""
    sections = [
        section(question, row, clips, answers) for question, row in zip(questions, scores, strict=True)
    ]
    legend = (
        "Blue: the picture asked with. Then the sounds nearest to it, with the frames they come from and the "
    )
    legend += "cosine; green: its own."
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Sounds for pictures</title>'
        f"<style>{_STYLE}</style><h1>Sounds for pictures</h1><p>{len(clips)} clips were listened to. {legend}</p>"
        f"{''.join(sections)}</html>\n"
    )


# %% All of it.
def main(arguments: Sequence[str] | None = None) -> None:
    """Reads, embeds, retrieves, and writes the page."""
    show_control_characters()
    options = parser.parse_args(command_line(arguments))
    try:
        check_writable(options.page.parent)
        encoders = load_pretrained(options.model)
        clips = read_clips(encoders, options.videos, options.clips)
        size = encoders.config.image_size
        questions = [Question(str(path), read_picture(path, size)) for path in options.pictures]
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    if not clips:
        parser.exit(1, f"{parser.prog}: error: no video below {options.videos} could be read\n")
    if not questions:
        chosen = range(0, len(clips), max(1, len(clips) // options.questions))
        frames = [(row, clips[row].id, clips[row].frames) for row in chosen][: options.questions]
        questions = [Question(name, frame[0], row) for row, name, frame in frames if frame is not None]
    scores = similarities(encoders, questions, clips)
    write_atomically(options.page, render(questions, scores, clips, options.answers))
    print(f"{len(questions)} pictures, {len(clips)} sounds; open {options.page} in a browser")


if __name__ == "__main__":
    main()
