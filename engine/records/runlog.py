"""What a run says: TensorBoard, ``metrics.jsonl``, ``status.json``, a bar or lines on the console, W&B where wanted."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from atomic import open_to_append, write_atomically
from datasets.untrusted import whole_number
from engine.records.status import update_status
from engine.records.wandb_log import LogConfig, WandbLog

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
        start_step: Steps taken so far. What is later belongs to an interrupted attempt: records leave
            ``metrics.jsonl``, TensorBoard's points are hidden. At 0 nothing is kept, since step 0 comes again. None
            adds to what is there, whatever its step.
        total_steps: For the progress bar and the time left.
        config: Where else numbers and pictures go.
        config_yaml: The run's config, for there.
    """

    def __init__(
        self,
        run: Path | None,
        start_step: int | None,
        total_steps: int,
        config: LogConfig | None = None,
        config_yaml: str = "",
    ) -> None:
        self._run, self._total = run, total_steps
        self._started, self._start_step = time.monotonic(), start_step or 0
        self._said = 0.0
        self._writer: SummaryWriter | None = None
        self._bar: tqdm | None = None
        self._wandb: WandbLog | None = None
        if run is None:
            return
        # Imported here: it is slow, and only rank 0 needs it.
        from torch.utils.tensorboard.writer import SummaryWriter

        first = None if start_step is None else start_step + bool(start_step)
        _put_before_now(run / "tensorboard")
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first)
        if config is not None and config.wandb is not None:
            self._wandb = WandbLog(run, config, config_yaml)
        self._metrics = run / "metrics.jsonl"
        _keep_records(self._metrics, before=math.inf if first is None else first)
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=self._start_step, unit="step", dynamic_ncols=True)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Writes named scalars of ``step`` to TensorBoard and ``metrics.jsonl`` (null for what is not finite)."""
        if self._run is None or self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.metrics(step, values)
        with open_to_append(self._metrics) as file:
            file.write(json.dumps({"step": step, **_finite(values)}, allow_nan=False).encode() + b"\n")

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
        from torchvision.io import encode_png

        self._writer.add_image(name, picture, step)
        if self._wandb is not None:
            self._wandb.image(name, picture, step)
        folder = self._run / "pictures"
        folder.mkdir(exist_ok=True)
        content = encode_png(picture).numpy().tobytes()
        write_atomically(folder / f"{name.replace('/', '_')}_{step:08d}.png", content)

    def status(self, step: int, **changes: Any) -> None:
        """Notes in ``status.json`` how the run stands; see `engine.records.status`."""
        if self._run is not None:
            update_status(self._run, step=step, total_steps=self._total, **changes)
            self._said = time.monotonic()

    def reached(self, step: int) -> None:
        """The same of a step in passing, once a second at most."""
        if time.monotonic() - self._said > 1:
            self.status(step)

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The records of ``RUN/metrics.jsonl``, in order; NaN for what was not finite."""
    return [
        {name: math.nan if value is None else value for name, value in record.items()}
        for record in _records(run / "metrics.jsonl")
    ]


def _records(path: Path) -> list[dict[str, float | None]]:
    """The numbers in the whole lines of a file of JSON lines; one that a killed process left torn is none."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and "step" in record:
            found.append({name: value for name, value in record.items() if _is_number(value)})
    return [record for record in found if "step" in record]


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, float) or whole_number(value, -(1 << 63), 1 << 63)


def _keep_records(path: Path, before: float) -> None:
    """Rewrites a run's records: whole ones of steps ``before`` the first to come."""
    if path.is_file():
        kept = [record for record in _records(path) if (record["step"] or 0) < before]
        write_atomically(path, "".join(json.dumps(_finite(record)) + "\n" for record in kept))


def _finite(record: Mapping[str, float | None]) -> dict[str, float | None]:
    """A record with null for numbers that JSON does not have."""
    return {
        name: None if value is None or not math.isfinite(value) else value for name, value in record.items()
    }


def _put_before_now(folder: Path) -> None:
    """Renames event files of the future, as a clock that was set back leaves them.

    TensorBoard reads a run's files in the order of the time in their names, and hides earlier points only of files
    that it has read by then.
    """
    now = int(time.time())
    for place, path in enumerate(sorted(folder.glob("events.out.tfevents.*"))):
        if _stamp(path) >= now:
            # "~" sorts behind the host names of files of the same second.
            name = path.name.removeprefix("events.out.tfevents.")
            path.rename(path.with_name(f"events.out.tfevents.{now - 1:010d}.~{place:06d}.{name}"))


def _stamp(path: Path) -> int:
    word = path.name.split(".")[3]
    return int(word) if word.isdigit() else 0


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
