"""What a run says: TensorBoard, ``metrics.jsonl``, ``status.json``, and a bar or plain lines on the console."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from datasets.atomic import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

logger = logging.getLogger("earsight")


def setup_console(is_main: bool) -> None:
    """Plain lines on standard error; ranks other than 0 speak only of what is wrong."""
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.ERROR)


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class RunLog:
    """One run's outputs; on ranks other than 0 it does nothing.

    Args:
        run: The run's folder, or None for a rank that writes nothing.
        start_step: Records after it belong to an interrupted attempt and are taken out of ``metrics.jsonl``; None
            adds to what is there, whatever its step.
        total_steps: For the progress bar and the time left.
    """

    def __init__(self, run: Path | None, start_step: int | None, total_steps: int) -> None:
        self._run, self._total = run, total_steps
        self._started, self._start_step = time.monotonic(), start_step or 0
        self._writer: SummaryWriter | None = None
        self._bar: tqdm | None = None
        if run is None:
            return
        # Imported here: it is slow, and only rank 0 needs it.
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(
            str(run / "tensorboard"), purge_step=start_step + 1 if start_step else None
        )
        self._metrics = run / "metrics.jsonl"
        if start_step is not None:
            _drop_records_after(self._metrics, start_step)
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=self._start_step, unit="step", dynamic_ncols=True)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Writes named scalars of ``step`` to TensorBoard and ``metrics.jsonl``."""
        if self._run is None or self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Shows the training metrics of a log interval on the console."""
        if self._run is None:
            return
        loss, rate = values["train/loss"], values["train/samples_per_second"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} samples/s")
            self._bar.update(step - self._bar.n)
            return
        done = max(1, step - self._start_step)
        left = (time.monotonic() - self._started) / done * (self._total - step)
        logger.info(
            "step %d/%d  loss %.4f  %.1f samples/s  data wait %.0f %%  %s left",
            step, self._total, loss, rate, 100 * values["train/data_wait_share"], _duration(left),
        )  # fmt: skip

    def image(self, name: str, picture: torch.Tensor, step: int) -> None:
        """Writes a (3, H, W) uint8 picture to TensorBoard and as PNG to ``RUN/pictures/``."""
        if self._run is None or self._writer is None:
            return
        from torchvision.io import write_png

        self._writer.add_image(name, picture, step)
        folder = self._run / "pictures"
        folder.mkdir(exist_ok=True)
        write_png(picture, str(folder / f"{name.replace('/', '_')}_{step:08d}.png"))

    def status(self, state: str, step: int, message: str = "") -> None:
        """Replaces ``status.json``: ``state`` is running, finished, stopped or failed."""
        if self._run is not None:
            record = {"state": state, "step": step, "total_steps": self._total, "message": message}
            write_atomically(self._run / "status.json", json.dumps(record) + "\n")

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The records of ``RUN/metrics.jsonl``, in order."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _drop_records_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that was being written when the run was killed
        if record["step"] <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
