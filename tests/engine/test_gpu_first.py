"""The script for the first hour on a GPU, as far as a CPU can run it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support.processes import run_program, run_world

from benchmarks import gpu_first
from benchmarks.gpu_checks import HEAD_WIDTHS, LENGTHS, resume_rows
from benchmarks.gpu_section import NotRunError, Setup
from engine.parallel.world import World


def test_sections_that_a_cpu_can_run(tmp_path: Path) -> None:
    out = tmp_path / "cpu.md"
    words = ["--device", "cpu", "--model", "cav_mae_tiny", "--batch_sizes", "2", "--steps", "1"]
    done = run_program("benchmarks/gpu_first.py", *words, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr + out.read_text()
    title, *parts = re.split("^## ", out.read_text(), flags=re.MULTILINE)
    assert title.startswith("# First measurements, 2")
    sections = dict(part.split("\n\n", 1) for part in parts)
    assert list(sections) == list(gpu_first.SECTIONS)
    not_run = [name for name, text in sections.items() if text.startswith("Not run: needs a GPU.")]
    assert not_run == ["Steps for which nobody waits", "Resuming on two GPUs"]
    attention = rows(sections["Attention"])
    assert len(attention) == 5 * len(LENGTHS) * len(HEAD_WIDTHS)
    plain = [row for row in attention if row[2] == "math"]
    assert all(0 < float(gap) < 0.1 for _, _, _, output, gradient, _ in plain for gap in (output, gradient))
    losses = rows(sections["bf16 against fp32"])
    assert [row[0] for row in losses] == ["1", "2", "3", "4"]
    assert all(float(fp32) == pytest.approx(float(bf16), rel=0.05) for _, fp32, bf16, _ in losses)
    (_, *measured) = rows(sections["Held-out clips on the device"])
    assert [row[0] for row in measured][:2] == ["retrieval_a2v_r1", "retrieval_a2v_r5"]
    assert all(cpu == device for _, cpu, device in measured)
    assert any(row[0].startswith("aten::") for row in rows(sections["Profile"]))
    sent = rows(sections["Beside the step"])
    assert [row[0] for row in sent] == ["on the steps' stream", "on its own"]
    costs = dict(re.findall(r"^(waited for|behind) +([\d.]+)", sections["Beside the step"], re.MULTILINE))
    assert set(costs) == {"waited for", "behind"}
    ((clips, seconds, rate, *_),) = rows(sections["Speed and memory"])
    assert float(rate) == pytest.approx(int(clips) / float(seconds), rel=0.05)


def rows(text: str) -> list[list[str]]:
    """The cells of a section's table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


def test_a_section_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setup: Setup) -> Iterator[str]:
        yield "this far"
        raise ValueError("no kernel image")

    def absent(setup: Setup) -> Iterator[str]:
        yield from ()
        raise NotRunError("one GPU: not run")

    def fine(setup: Setup) -> Iterator[str]:
        yield "as expected"

    out = tmp_path / "page.md"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(gpu_first, "SECTIONS", {"Broken": broken, "Absent": absent, "Fine": fine})
    monkeypatch.setattr(gpu_first, "distributed", lambda: nullcontext(World(0, 1, torch.device("cpu"))))
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--device", "cpu", "--out", str(out)])
    assert gpu_first.main() == 1
    page = out.read_text()
    assert re.search(r"## Broken\n\nthis far\n\*\*Failed.\*\*\n(.|\n)*ValueError: no kernel image", page)
    assert "## Absent\n\nNot run: one GPU: not run." in page
    assert "## Fine\n\nas expected" in page
    assert "failed: Broken" in page.splitlines()[-1]
    monkeypatch.setattr(gpu_first, "SECTIONS", {"Fine": fine})
    assert gpu_first.main() == 0


def test_runs_stopped_alone_are_resumed_in_company(tmp_path: Path) -> None:
    words = ["benchmarks/gpu_resume.py", "--out", str(tmp_path), "--zero_stages", "0", "--steps", "2"]
    for processes in (1, 2):
        ended = run_world(*words, world_size=processes)
        assert [rank.returncode for rank in ended] == [0] * processes, ended[0].stderr
    ((*facts, gap),) = resume_rows(tmp_path)
    assert facts == ["0", 2, 1, 2]  # the stage, steps, the step after which it was resumed, on how many
    assert 0 <= float(gap) < 1e-4
