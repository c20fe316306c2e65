"""A step that goes on for long is said, with rank, seconds and step; steps that pass are not."""

from __future__ import annotations

import time

import pytest

from engine.parallel.watch import StepWatch


@pytest.mark.parametrize(("size", "stands", "said"), [(2, True, True), (2, False, False), (1, True, False)])
def test_only_a_rank_that_waits_says_so(
    caplog: pytest.LogCaptureFixture, size: int, stands: bool, said: bool
):
    with StepWatch(1, size, first=0.1, again=0.1, period=0.02) as watch:
        end = time.monotonic() + 5.0
        watch.begin(7)
        while time.monotonic() < end and caplog.text.count("waited") < 2:
            time.sleep(0.01)
            if not stands:
                watch.end()
                watch.begin(8)
            if not said and time.monotonic() > end - 4.5:
                break
    assert (caplog.text.count("waited") >= 2) == said
    assert ("rank 1 has waited 0 s for the others in step 7" in caplog.text) == said


def test_reading_and_saving_are_no_waiting(caplog: pytest.LogCaptureFixture):
    with StepWatch(0, 2, first=0.04, period=0.02) as watch:
        watch.begin(1)
        watch.end()
        time.sleep(0.2)
    assert not caplog.text
