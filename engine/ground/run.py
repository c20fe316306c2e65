"""Shows where in a video the sound comes from: an MP4 with sound, the input beside the same under its heat."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from atomic import check_writable
from engine.ground.film import make_film
from engine.ground.grounder import Grounder
from engine.namesake import check_datasets
from home_paths import command_line
from terminal import show_control_characters


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the film that the command line asks for."""
    show_control_characters()
    check_datasets()
    parser = argparse.ArgumentParser(
        prog="python -m engine.ground", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="a run with objective.kind dense, or a checkpoint of one")
    parser.add_argument("video", type=Path, help="any video with sound")
    parser.add_argument("out", type=Path, help="the MP4 to write")
    parser.add_argument("--fps", type=int, default=10, help="frames a second (default: 10)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(command_line(arguments))
    try:
        if options.out.suffix != ".mp4":
            raise ValueError(f"{options.out} must end in .mp4")
        if options.fps < 1:
            raise ValueError(f"--fps {options.fps} must be at least 1")
        check_writable(options.out.parent)
        grounder = Grounder.open(options.model).to(options.device)
        top = make_film(grounder, options.video, options.out, options.fps)
    except ValueError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"wrote {options.out}; full heat is a similarity of {top:.3g}")
