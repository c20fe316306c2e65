"""Whatever happens to a run on the way, the same command ends it as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

from support.campaign import Campaign, Event, plan_events


def test_a_disturbed_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, steps=9)
    campaign.undisturbed()
    events = [
        Event("usr1", "step", 4, 0.0, 1, 1),
        Event("damage", "start", 0, 0.0, 1, 3),
        Event("torn", "start", 0, 0.0, 1, 0),
        Event("kill", "evaluation", 0, 0.0, 1, 1),
    ]
    outcomes = [campaign.disturb(event) for event in events]
    campaign.finish()
    assert campaign.differences() == [], outcomes


def test_the_plan_is_a_function_of_its_seed() -> None:
    plan = plan_events(50, 3, 9, (1, 2))
    assert plan == plan_events(50, 3, 9, (1, 2)) != plan_events(50, 4, 9, (1, 2))
    assert {event.kind for event in plan} == {"kill", "term", "usr1", "damage", "torn", "full", "refused"}
    assert {event.when for event in plan} == {"start", "step", "write", "evaluation"}
