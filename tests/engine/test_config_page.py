"""The page of all settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import engine.config_page as config_page
from datasets.loading.loader import DataConfig
from engine.config_page import PAGE, descriptions, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m engine.config_page"


def test_it_has_every_key_with_what_it_is() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    keys = {row.split("`")[1] for row in rows}
    assert {
        "data.train",
        "train.parallel.zero_stage",
        "objective.contrast_weight",
        "model.mask.audio_ratio",
    } <= keys
    assert {"evaluation.probe.neighbours", "objective.head_lr_ratio", "log.wandb"} <= keys
    assert [row for row in rows if row.count(" | ") < 3 or row.endswith("|  |")] == []
    assert descriptions(DataConfig)["val"].startswith("The same")


def test_a_key_of_a_new_dataclass_appears() -> None:
    @dataclass
    class Settings:
        """Of a test.

        Attributes:
            speed: How fast ``it`` goes,
                or not.
        """

        speed: Literal["slow", "a|b"] | None = None

    globals()["Settings"] = Settings
    table = config_page._table(Settings, prefix="test.")
    assert (
        table.splitlines()[-1]
        == "| `test.speed` | `slow`, `a\\|b` or null | `null` | How fast `it` goes, or not. |"
    )
