"""What is secret in the location of a set, such as a signed URL, comes into no message, log or report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Some
from typing import Any

import pytest
import torch
from support.shards import make_shards

from datasets.loading.config import WeightedSet
from datasets.loading.joined import common_labels
from datasets.loading.reader import ClipReader
from datasets.shards.manifest import Label
from datasets.shards.names import public
from engine.checkpoints.folder import Checkpoint, CheckpointState
from engine.evaluation.final import FinalEvaluation
from engine.recipes.nearest import differences
from engine.tasks import labelled_sets
from engine.tasks.finetune import check_classes, keep_classes
from engine.tasks.labelled_sets import LabelledSet, class_places, open_labelled
from engine.training.changes import check_settings
from strict_yaml import contradictions

LOCATIONS = [
    "https://me:hunter2@host/set/{}?X-Amz-Signature=hunter2",
    "pipe:curl -H hunter2 https://host/{}?sig=hunter2",
    "pipe:TOKEN=hunter2 fetch {}",
]


def error_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        call(*arguments)
    return str(raised.value)


def labelled(location: str, *names: str) -> Any:
    index: Any = Some(labels=tuple(Label(name) for name in names))
    table: Any = Some(label_ids=[])
    return LabelledSet(location, index, table)


def of_a_reader(location: str, folder: Path) -> list[str]:
    make_shards(folder / "set", 1, 1)
    reader = ClipReader(folder / "set")
    reader.store.location = location
    empty: Any = Some(num_with_audio=0, num_with_frames=0, num_with_text=0, most_frames=1, video_slots=0)
    reader.table = empty
    return [error_of(reader._check_contents), error_of(reader._check_frames, 9)]


def of_labels(location: str, folder: Path) -> list[str]:
    one, other = labelled(location, "a"), labelled(location, "b")
    keep_classes(folder, one)
    return [
        error_of(class_places, one, other),
        error_of(check_classes, folder, other),
        error_of(common_labels, [location, location], [one.index, other.index]),
    ]


def of_a_set_without_labels(location: str, folder: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        found = labelled(location)
        store = Some(open_index=lambda: (found.index, found.table))
        patch.setattr(labelled_sets, "open_store", lambda *_: store)
        return [error_of(open_labelled, Some(data=None), location)]


def of_settings(location: str, folder: Path) -> list[str]:
    (folder / "config.yaml").write_text("data: {train: [{path: before}]}\n")
    before = Checkpoint(folder, CheckpointState(4, 1, 0, "2", "0"))
    said = check_settings(before, f"data: {{train: [{{path: '{location}'}}], val: '{location}'}}\n")
    assert len(said) == 2
    return [
        *said,
        error_of(WeightedSet, location, -1.0),
        *contradictions([f"data.train={location}", "--data.train", "x", f"--data={location}"]),
    ]


def of_an_evaluation(location: str, folder: Path) -> list[str]:
    scores, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.eye(2)
    config = Some(evaluation=Some(bootstrap=2), objective=Some(modalities="audio"))
    own: Any = Some(shards=location, config=config, train=labelled("x", "a", "b"))
    predictions: Any = Some(labels=labels, scores={"audio": scores}, ids=["0", "1"], failures=[])
    return [str(FinalEvaluation._measure(own, predictions))]


def of_a_comparison(location: str, folder: Path) -> list[str]:
    return [str(differences([{"data": {"train": location, "val": [{"path": location}]}}, {}]))]


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize(
    "messages",
    [of_a_reader, of_labels, of_a_set_without_labels, of_settings, of_an_evaluation, of_a_comparison],
)
def test_no_secret_is_shown(
    messages: Callable[[str, Path], list[str]], location: str, tmp_path: Path
) -> None:
    said = "\n".join(messages(location, tmp_path))
    assert "hunter2" not in said
    assert "hunter2" not in public(location)
