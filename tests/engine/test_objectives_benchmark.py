"""The comparisons on the generated world: recipes of all objectives, costs of processes, the pages."""

import json
from pathlib import Path

import pytest

from benchmarks.comparison import (
    Candidate,
    Comparison,
    find_candidates,
    flat,
    run_python,
    seconds_until,
    start_python,
)
from benchmarks.comparison_page import BEGIN, END, MAVIL, OBJECTIVES, plot, render, write_page
from benchmarks.mavil import candidates
from engine.config import PretrainConfig, parse_config
from engine.objectives.mavil import MavilConfig
from engine.objectives.registry import list_objectives


def result(name: str, seed: int, r1: float) -> dict:
    measured = {"retrieval_a2v_r1": r1, "retrieval_v2a_r1": r1 + 0.1, "linear_audio_top1": 0.5}
    return {
        "name": name, "seed": seed, "minutes": 2.0, "steps": 131, "clips": 8384, "clips_per_second": 90.0,
        "peak_bytes": 7e8, "measured": measured,
        "finetuned": {"audio": 0.6, "visual": 0.7, "audio_visual": 0.8},
    }  # fmt: skip


RESULTS = [result("cav_mae", 0, 0.1), result("cav_mae", 1, 0.2), result("equiav", 0, 0.3)]


def parsed(candidate: Candidate) -> PretrainConfig:
    words = ["--config", str(candidate.recipe), "data.train=x", *candidate.words]
    return parse_config(PretrainConfig, "x", words)[0]


def test_every_objective_has_a_recipe_for_the_generated_world():
    found = find_candidates(list_objectives())
    assert sorted(candidate.name for candidate in found) == list_objectives()
    for number, candidate in enumerate(found):
        config = parsed(candidate)
        assert config.objective.kind == candidate.name
        assert candidate.batch == config.train.parallel.global_batch_size
        assert candidate.teacher is None or candidate.teacher in found[:number]
    with pytest.raises(ValueError, match="the run of none of the objectives compared"):
        find_candidates(["mavil_self_training"])


class Drifting(Comparison):
    """On a machine that takes twice as long for the same work after the first measurement."""

    number = 0

    def measure(self, candidate: Candidate) -> float:
        self.number += 1
        return {"cav_mae": 0.5, "equiav": 2.0}[candidate.name] * (1 if self.number == 1 else 2)


def test_a_candidate_costs_what_it_does_beside_the_reference(tmp_path: Path):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    index = {"samples": 1200, "fbank": {"mean": -5.0, "std": 4.0}}
    (tmp_path / "shards" / "train" / "index.json").write_text(json.dumps(index))
    comparison = Drifting(tmp_path, tmp_path / "runs", 2.0, [0])
    cav_mae, equiav = find_candidates(["cav_mae", "equiav"])
    for _ in range(2):  # the second time it is read
        assert comparison.step_seconds(cav_mae) == 0.5
        assert comparison.step_seconds(equiav) == 2.0
    assert comparison.number == 3


def test_mavil_is_compared_with_what_costs_as_much():
    order = candidates()
    found = {candidate.name: candidate for candidate in order}
    assert len(found) == 7
    for number, candidate in enumerate(order):
        parsed(candidate)
        assert candidate.teacher is None or candidate.teacher in order[:number]
    objective = parsed(found["mavil without contrast within a modality"]).objective
    assert isinstance(objective, MavilConfig)
    assert objective.intra_weight == 0
    assert found["mavil_self_training"].teacher is found["mavil"]
    assert found["mavil_self_training, second round"].teacher is found["mavil_self_training"]
    assert found["mavil, twice as long"].times == 2


def test_an_objective_without_a_recipe_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"pretrain_nothing_tiny.yaml: the objective nothing has no recipe"
    ):
        find_candidates(["nothing"])


def test_processes_are_measured_and_their_failure_is_told(tmp_path):
    assert run_python(["-c", "x = bytearray(10 ** 8); import time; time.sleep(1)"], tmp_path / "log") >= 10**8
    with pytest.raises(RuntimeError, match=r"status 3.*\nlast words"):
        run_python(["-c", "print('last words', flush=True); raise SystemExit(3)"], tmp_path / "log")


def test_the_cost_of_steps_is_what_the_process_used_between_them(tmp_path):
    program = f"""
import json, time
with open({str(tmp_path / "metrics.jsonl")!r}, "w") as file:
    for step in (1, 2, 3):
        end = time.process_time() + 0.5
        while time.process_time() < end: pass
        print(json.dumps({{"step": step, "train/loss": 1.0}}), file=file, flush=True)
time.sleep(60)
"""
    with start_python(["-c", program], tmp_path / "log") as process:
        (began, first), (ended, last) = (seconds_until(process, tmp_path, step) for step in (1, 3))
    assert ended == 3
    assert 0.4 * (ended - began) <= last - first <= 1.5 * (ended - began)
    assert not process.is_running()
    with (
        pytest.raises(RuntimeError, match=r"status 3.*\nlast words"),
        start_python(
            ["-c", "print('last words', flush=True); raise SystemExit(3)"], tmp_path / "log"
        ) as process,
    ):
        seconds_until(process, tmp_path, 4)


def test_the_table_holds_means_and_spreads():
    lines = render(RESULTS, OBJECTIVES).splitlines()
    assert len(lines) == 4
    assert (
        "| cav_mae | 2 | 8384 | 90 | 0.7 | 15.0 ± 7.1 | 25.0 ± 7.1 | 50.0 ± 0.0 | – | – | 60.0 ± 0.0 |"
        in lines[2]
    )
    assert "| 30.0 | 40.0 | 50.0 | – | – | 60.0 | 70.0 | 80.0 |" in lines[3]
    assert render(RESULTS, MAVIL).splitlines()[3] == "| equiav | 2 | 8384 | 30.0 | 40.0 | 50.0 | – | – |"
    assert "35.0%" in plot(RESULTS)


def test_the_page_keeps_all_but_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_page(page, RESULTS, OBJECTIVES)
        text = page.read_text()
        assert text.startswith(f"before\n{BEGIN}\nMinutes of one processor for pretraining; 2 seeds")
        assert text.endswith(f"(page.svg)\n{END}\nafter\n")
        assert "old" not in text
    assert (tmp_path / "page.svg").read_text().startswith("<svg")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="once each"):
        write_page(page, RESULTS, OBJECTIVES)


def test_settings_are_flattened_for_the_command_line():
    assert flat({"name": "a", "mask": {"audio_ratio": 0.5}}) == [("name", "a"), ("mask.audio_ratio", 0.5)]
