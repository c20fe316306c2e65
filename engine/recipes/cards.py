"""Recipe cards, ``configs/cards/NAME.yaml``: what a recipe costs and gives, and whether a run gives that too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from datasets.shards.manifest import ShardIndex
from datasets.shards.names import is_url
from engine.recipes.nearest import CONFIGS, Nearest
from engine.run_folder import RunFolder
from strict_yaml import load_yaml_file, use_strict_yaml

#: A record stands for a point of a curve if its step is no further away than this share.
_NEAR = 0.05
Verdict = Literal["as expected", "below", "not comparable"]


@dataclass(frozen=True)
class Expectation:
    """A measured figure.

    Attributes:
        metric: Its name in ``metrics.jsonl``.
        value: What was measured.
        tolerance: By how much another run may fall short of it.
        step: After which step; None is the end of the run.
        better: Which way is better.
    """

    metric: str
    value: float
    tolerance: float
    step: int | None = None
    better: Literal["higher", "lower"] = "higher"

    def holds(self, found: float) -> bool:
        """Whether a run's figure is as good, within the tolerance."""
        short = self.value - found if self.better == "higher" else found - self.value
        return short <= self.tolerance


@dataclass(frozen=True)
class Card:
    """What is known of a recipe.

    Attributes:
        recipe: Its file in ``configs/``.
        source: Where its settings come from.
        data: What it is for.
        cost: What it takes, and by whose account.
        run_here: Whether all of it has been run with this code; without, nothing is expected of a run.
        clips: Training clips of the runs that were measured, if it matters.
        from_weights: Whether these began from given weights.
        expected: What these gave.
    """

    recipe: str
    source: str
    data: str
    cost: str
    run_here: bool
    clips: int | None = None
    from_weights: bool = False
    expected: tuple[Expectation, ...] = ()

    def __post_init__(self) -> None:
        if not self.run_here and self.expected:
            raise ValueError(f"the card of {self.recipe} expects figures of a recipe that was not run here")


@dataclass(frozen=True)
class Judgement:
    """A run beside its recipe's card.

    Attributes:
        verdict: In a word.
        why: The reasons.
        rows: Metric, step, expected, tolerance, found, and whether it holds.
    """

    verdict: Verdict
    why: str
    rows: tuple[tuple[str, str, str, str, str, str], ...] = ()


def load_card(recipe: Path | str) -> Card:
    """The card of a recipe.

    Raises:
        FileNotFoundError: It has none.
        ValueError: It is none, or of another recipe.
    """
    path = CONFIGS / "cards" / Path(recipe).name
    use_strict_yaml()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Card, fail_untyped=True, sub_configs=False)
    try:
        parsed = parser.instantiate(parser.parse_object(load_yaml_file(path)))
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path}: {error}") from error
    card = Card(**vars(parsed))
    if card.recipe != path.name:
        raise ValueError(f"{path} is the card of {card.recipe}")
    return card


def judge(run: RunFolder, nearest: Nearest | None) -> Judgement:
    """Whether a run gives what its recipe's card expects; what can't be compared is said."""
    if nearest is None:
        return Judgement("not comparable", "no recipe is of this objective and model")
    card = load_card(nearest.path)
    why = _obstacles(run, nearest, card)
    if why:
        return Judgement("not comparable", "; ".join(why))
    finished = run.status.get("state") == "finished"
    rows, held = [], []
    for one in card.expected:
        found = _found(run, one, finished)
        word = "not there" if found is None else "as expected" if one.holds(found) else "below"
        held.append(word)
        step = "end" if one.step is None else f"{one.step:,}"
        shown = "–" if found is None else f"{found:.4g}"
        rows.append((one.metric, step, f"{one.value:.4g}", f"{one.tolerance:.2g}", shown, word))
    if "below" in held:
        return Judgement("below", f"{held.count('below')} of {len(held)} figures", tuple(rows))
    if "as expected" not in held:
        return Judgement("not comparable", "the run has none of the card's figures yet", tuple(rows))
    missing = held.count("not there")
    return Judgement("as expected", f"{missing} figures are not there (yet)" if missing else "", tuple(rows))


def _obstacles(run: RunFolder, nearest: Nearest, card: Card) -> list[str]:
    """Why a run says nothing of its recipe."""
    why = []
    if not card.expected:
        why.append(f"configs/{card.recipe} has no figures that were measured here")
    if nearest.changed:
        why.append(
            f"settings differ from configs/{card.recipe}: {', '.join(one.key for one in nearest.changed)}"
        )
    if bool(run.value("init")) != card.from_weights:
        starts = ("random weights", "given weights")
        why.append(
            f"it began from {starts[not card.from_weights]}, the card's runs from {starts[card.from_weights]}"
        )
    clips = _training_clips(run)
    if card.clips is not None and clips is not None and clips != card.clips:
        why.append(f"it was trained on {clips:,} clips, the card's runs on {card.clips:,}")
    return why


def _training_clips(run: RunFolder) -> int | None:
    """Clips of the training set, where it is on this machine."""
    path = run.value("data.train")
    if not isinstance(path, str) or is_url(path):
        return None
    try:
        return ShardIndex.load(path).samples
    except (ValueError, OSError):
        return None


def _found(run: RunFolder, one: Expectation, finished: bool) -> float | None:
    if one.step is None:
        return run.last(one.metric) if finished else None
    points = [
        (abs(record["step"] - one.step), record[one.metric]) for record in run.records if one.metric in record
    ]
    distance, value = min(points, default=(float("inf"), 0.0))
    return value if distance <= _NEAR * one.step else None
