"""What ``datasets.prepare`` is asked for."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets.prepare.encode import EncodeSettings
from datasets.prepare.matching import Files
from datasets.prepare.sources import printable

_NO_INFLUENCE = ("out", "split", "num_workers", "timeout_seconds")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(EncodeSettings):
    """What to prepare, and how.

    Attributes:
        source: A folder of videos (searched recursively), a text file of paths, one a line, a CSV with a
            column path (and label or label.TASK, text, split, start, end), or one video. Relative paths are
            relative to the file's folder.
        out: Folder for the shards; where the label file has splits, each goes to a folder of its own in it.
        labels: AudioSet's *_segments.csv, VGGSound's CSV, or a CSV with a column path; the form is
            recognised.
        classes: The vocabulary: AudioSet's class_labels_indices.csv, a text file with one class a line, or
            the index.json of another set. Without it: the class file beside AudioSet's label file, or all
            labels of the label file in sorted order.
        folders_as_classes: The first folder of each path below source is its class.
        split: Only this split of the label file.
        files: Whether files named only by an id are clips already cut, whole videos, or judged by their
            duration.
        shuffle: Shuffle the order of the clips.
        seed: Of the shuffle.
        shard_megabytes: Size at which a shard is finished.
        fbank_clips: Clips, evenly spread, on which mean and standard deviation of the log-mel values are
            measured.
        num_workers: Processes that decode; null for one per core.
        timeout_seconds: A clip that takes longer is rejected (timed_out).
    """

    source: str
    out: str
    labels: str | None = None
    classes: str | None = None
    folders_as_classes: bool = False
    split: str | None = None
    files: Files = "auto"
    shuffle: bool = True
    seed: int = 0
    shard_megabytes: float = 256.0
    fbank_clips: int = 1000
    num_workers: int | None = None
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels and self.folders_as_classes:
            raise ValueError("labels and folders_as_classes are two sources of labels; give one")
        if self.shard_megabytes <= 0 or (self.num_workers is not None and self.num_workers < 1):
            raise ValueError("shard_megabytes must be above 0 and num_workers at least 1")
        if self.fbank_clips < 1:
            raise ValueError(f"fbank_clips must be at least 1, got {self.fbank_clips}")

    @property
    def root(self) -> Path:
        """Folder that the paths of videos are relative to."""
        source = Path(self.source)
        return source if source.is_dir() else source.parent

    def settings(self) -> dict[str, object]:
        """Everything that affects the result; label and class files by their content as well."""
        settings = {name: value for name, value in asdict(self).items() if name not in _NO_INFLUENCE}
        if not self.partial:  # sets made before there was this setting are what it makes without it
            del settings["partial"]
        manifest = self.source if Path(self.source).suffix.lower() == ".csv" else None
        for name, path in (("source", manifest), ("labels", self.labels), ("classes", self.classes)):
            if path and Path(path).is_file():
                with open(path, "rb") as file:
                    settings[f"{name}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            name: printable(value) if isinstance(value, str) else value for name, value in settings.items()
        }
