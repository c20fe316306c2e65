"""Disturbs a small fine-tuning run again and again, and compares what comes out with one that was left alone.

    python benchmarks/kill_campaign.py --events 100 --seed 0 --worlds 1 2

Signals and kill -9 to one process or all, while a program starts, between steps, while a checkpoint is written and in
the evaluation at the end; damaged files of the newest checkpoint; torn records; full disks; settings that are refused;
another number of processes. All are drawn from the seed, and after each the same command is given again. A run is
disturbed by up to ``--run_events`` of them, then runs to its end, and must have the undisturbed run's losses, curves,
weights, means, evaluation and status: exactly with one process, to rounding where the number of processes changed.

Prints a line an event, then the figures. Exit status 0 only if all is as it should be.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.campaign import Campaign, plan_events  # noqa: E402

from home_paths import command_line  # noqa: E402


def main() -> int:
    """Runs the campaign."""
    options = _parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.folder or name)
        folder.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(folder, options.steps, zero_stage=options.zero_stage)
        started = time.monotonic()
        campaign.undisturbed()
        print(f"undisturbed: {options.steps} steps in {time.monotonic() - started:.0f} s", flush=True)
        problems, outcomes, runs = _disturb(campaign, options)
    print(
        f"{sum(outcomes.values())} events in {runs} runs of {options.steps} steps, {campaign.attempts} starts"
    )
    for kind, count in sorted(outcomes.items()):
        print(f"  {kind}: {count}")
    print(f"{len(problems)} problems")
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def _disturb(
    campaign: Campaign, options: argparse.Namespace
) -> tuple[list[str], collections.Counter[str], int]:
    """The problems, how often each kind of event came, and the number of runs."""
    events = plan_events(options.events, options.seed, options.steps // 2, tuple(options.worlds))
    problems: list[str] = []
    outcomes: collections.Counter[str] = collections.Counter()
    runs = 0
    while events:
        runs += 1
        shutil.rmtree(campaign.run, ignore_errors=True)
        campaign.worlds.clear()
        now, events = events[: options.run_events], events[options.run_events :]
        try:
            for event in now:
                outcomes[event.kind] += 1
                print(f"run {runs}, {event.world} process(es): {campaign.disturb(event)}", flush=True)
            campaign.finish()
            found = campaign.differences()
        except AssertionError as error:
            found = [str(error)]
        problems += [f"run {runs}: {problem}" for problem in found]
        print(f"run {runs} ended: {'; '.join(found) or 'as the undisturbed one'}", flush=True)
    return problems, outcomes, runs


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100, help="how many")
    parser.add_argument("--run_events", type=int, default=7, help="how many to a run")
    parser.add_argument("--seed", type=int, default=0, help="decides what happens when to whom")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run")
    parser.add_argument(
        "--worlds", type=int, nargs="+", default=[1], help="numbers of processes to draw from"
    )
    parser.add_argument("--zero_stage", type=int, default=1, choices=(0, 1, 2), help="of the runs")
    parser.add_argument("--folder", help="keep runs and logs here; a temporary folder otherwise")
    return parser.parse_args(command_line())


if __name__ == "__main__":
    sys.exit(main())
