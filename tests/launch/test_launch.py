"""Submitting: settings, the training command line, sweeps, snapshots, and the local executor end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.node import SCRIPT
from support.runs import PRETRAIN, ROOT, history, launcher, launcher_environment
from support.shards import make_shards

from launch.config import LaunchConfig
from launch.executors import slurm_parameters
from launch.registry import find_submissions
from launch.snapshot import in_snapshot, take_snapshot
from launch.status import describe
from launch.training import plan_runs, values_of


def launch(program: str, *arguments: str, folder: Path, code: int = 0) -> str:
    command = launcher(program, *arguments)
    done = subprocess.run(command, cwd=folder, env=launcher_environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_launcher_imports_nothing_of_the_training_code():
    check = (
        "import sys, launch.submit, launch.cancel, launch.preflight; "
        "print(sorted({'torch', 'deepspeed', 'models', 'engine', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a b"}, "name: 'a b'"),
        ({"nodes": 0}, "nodes: 0"),
        ({"cluster": "local", "nodes": 2}, "nodes: 2 on cluster=local"),
        ({"gpus_per_node": 4, "processes_per_node": 2}, "processes_per_node: 2"),
        ({"gpus_per_node": 0, "numa_binding": "node"}, "numa_binding: node"),
        ({"minutes": 1, "warning_seconds": 60}, "warning_seconds: 60"),
        ({"cluster": "local", "seeds": [0, 1]}, "seeds, sweep: cluster=local"),
        ({"cluster": "debug", "setup": ["module load cuda"]}, "setup, python: cluster=debug"),
        ({"gpu_memory_gb": 0.0}, "gpu_memory_gb: 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_key(settings, message):
    with pytest.raises(ValueError, match=message):
        LaunchConfig(**settings)


def test_settings_as_sbatch_parameters(tmp_path):
    config = LaunchConfig(nodes=4, gpus_per_node=8, cpus_per_process=6, memory_gb=1.5, sbatch={"gres": "x"})
    parameters = slurm_parameters(config, tmp_path)
    assert (parameters["cpus_per_task"], parameters["gpus_per_node"], parameters["mem"]) == (48, 8, "1536M")
    assert parameters["srun_args"] == ["--cpus-per-task=48"]
    assert parameters["additional_parameters"] == {"requeue": True, "chdir": str(tmp_path), "gres": "x"}
    assert "partition" not in parameters


@pytest.mark.parametrize("form", [["--seed", "3"], ["--seed=3"], ["seed=3"]])
def test_reads_all_forms_of_an_argument(form):
    assert values_of("seed", ["--seeds", "1", *form, "data.seed=4"]) == ["3"]


def test_output_dir_comes_from_arguments_then_config_then_name(tmp_path):
    (tmp_path / "train.py").touch()
    (tmp_path / "c.yaml").write_text("output_dir: from_config\n")
    cases = {
        "given": ["--config", "c.yaml", "output_dir=given"],
        "from_config": ["--config=c.yaml"],
        "runs/name": ["x=1"],
    }
    for expected, arguments in cases.items():
        (run,) = plan_runs(["train.py", *arguments], "name", [], [], tmp_path)
        assert run.output_dir == tmp_path / expected
        assert run.arguments[-1] == f"--output_dir={tmp_path / expected}"


def test_a_sweep_crosses_seeds_and_overrides(tmp_path):
    (tmp_path / "train.py").touch()
    runs = plan_runs(["train.py", "a=1"], "name", [0, 1], ["lr=1e-3 wd=0", "lr=1e-4"], tmp_path)
    assert [run.output_dir.name for run in runs] == [
        "lr-1e-3-wd-0-seed-0", "lr-1e-4-seed-0", "lr-1e-3-wd-0-seed-1", "lr-1e-4-seed-1",
    ]  # fmt: skip
    assert runs[0].arguments[:-1] == ("a=1", "--lr=1e-3", "--wd=0", "--seed=0")
    with pytest.raises(ValueError, match="the same"):
        plan_runs(["train.py"], "name", [0, 0], [], tmp_path)


def test_snapshot_holds_code_and_no_secret(tmp_path):
    tree = tmp_path / "tree"
    (tree / "configs").mkdir(parents=True)
    for name, text in {".gitignore": "runs/\n", "train.py": "old", "configs/c.yaml": "a: 1"}.items():
        (tree / name).write_text(text)
    for name in (
        ".env",
        "key.pem",
        "configs/secrets.yaml",
        "id_rsa",
        "notes.txt",
        "API_Keys.py",
        "configs/Passwords.yaml",
        "wandb_key.py",
        "private.yaml",
        "auth.yaml",
    ):
        (tree / name).write_text("secret")
    (tree / "link.yaml").symlink_to("key.pem")
    subprocess.run(["git", "init", "--quiet", tree], check=True)
    snapshot = tree / "runs" / "r" / "launch" / "code" / "now"
    take_snapshot(snapshot, tree)
    (tree / "train.py").write_text("edited")
    copied = sorted(str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file())
    assert copied == ["configs/c.yaml", "train.py"]
    assert (snapshot / "train.py").read_text() == "old"
    (run,) = plan_runs(["train.py", "--config", "configs/c.yaml", "data=d"], "r", [], [], tree)
    command = in_snapshot(run, snapshot, tree, tree)
    expected = [str(snapshot / "train.py"), "--config", str(snapshot / "configs" / "c.yaml"), "data=d"]
    assert command[:-1] == expected


def test_snapshot_without_git_leaves_runs_and_data_out(tmp_path):
    tree = tmp_path / "tree"
    for name in (
        "runs/r/x.py", "data/x.py", "wandb/x.py", ".venv/x.py", ".pgpass", "my-API-key.txt", "Token.yaml", "keys/a.py",
        "weights.npz", "models/m.py", "models/page.css", "main.py",
    ):  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    take_snapshot(tree / "out" / "code", tree)
    copied = sorted(
        str(p.relative_to(tree / "out/code")) for p in (tree / "out/code").rglob("*") if p.is_file()
    )
    assert copied == ["main.py", "models/m.py", "models/page.css"]


def test_unknown_setting_is_refused_by_name(tmp_path):
    (tmp_path / "launch.yaml").write_text("nodse: 2\n")
    output = launch("submit", "--config=launch.yaml", "--", SCRIPT, folder=tmp_path, code=2)
    assert "nodse" in output
    output = launch("submit", "--node=2", "--", SCRIPT, folder=tmp_path, code=2)
    assert "--node=2" in output  # no abbreviations


def test_dry_run_prints_the_script_also_without_slurm(tmp_path):
    arguments = ("--dry_run", "--nodes=4", "--partition=gpu", "--name=big", "--seeds=[0,1]")
    output = launch("submit", *arguments, "--", PRETRAIN, "data.train=d", folder=tmp_path)
    for line in (
        "--nodes=4",
        "--gpus-per-node=8",
        "--partition=gpu",
        "--array=0-1%2",
        "--requeue",
        "--seed=1",
    ):
        assert line in output
    assert not (tmp_path / "runs").exists()
    here = launch("submit", "--dry_run", "--cluster=local", "--", PRETRAIN, "data.train=a b", folder=tmp_path)
    assert "8 processes on this machine" in here
    assert "'data.train=a b'" in here
    assert "#SBATCH" not in here


def test_preflight_looks_at_every_entry_of_a_sweep(tmp_path):
    arguments = (
        "--cluster=debug",
        "--gpus_per_node=0",
        "--seeds=[0, 1]",
        '--sweep=["seed=2", "optimiser.lr=1"]',
    )
    output = launch("submit", *arguments, "--", PRETRAIN, "data.train=nowhere", folder=tmp_path, code=2)
    assert "nowhere does not exist" in output
    assert "nothing is submitted" in output
    make_shards(tmp_path / "shards", 4, 4)
    rest = ("data.train=shards", "train.parallel.global_batch_size=2", "model.name=cav_mae_tiny")
    output = launch("submit", *arguments, "--", PRETRAIN, *rest, folder=tmp_path, code=2)
    assert "--optimiser.lr=1" in output
    assert "GPU hours" not in output
    assert not (tmp_path / "runs").exists()


def test_what_the_cluster_refuses_is_said_in_its_words(tmp_path):
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    command = launcher("submit", "--partition=gpuu", "--preflight=false", "--snapshot=false", "--", SCRIPT)
    environment = launcher_environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "refuses the job: sbatch: error: invalid partition specified: gpuu" in done.stderr
    assert "Traceback" not in done.stderr


LOCAL = ("--cluster=local", "--gpus_per_node=0", "--preflight=false", "--snapshot=false", "--minutes=5")


def wait_for(done, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_local_job_is_signalled_requeued_and_finishes(tmp_path):
    """With submitit's local executor and torchrun itself."""
    run = tmp_path / "runs" / "signalled"
    arguments = (*LOCAL, "--name=signalled", "--", SCRIPT, "--steps=10", "--hold=1")
    assert str(run) in launch("submit", *arguments, folder=tmp_path)
    wait_for(lambda: (run / "checkpoints").exists())
    assert "RUNNING" in launch("status", "signalled", folder=tmp_path)
    assert "choose another output_dir" in launch("submit", *arguments, folder=tmp_path, code=2)
    (record,) = find_submissions("signalled", tmp_path)
    controller = int(record.job_id)
    task = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()[0]
    os.kill(int(task), signal.SIGUSR2)
    wait_for(lambda: [attempt["action"] for attempt in history(run)] == ["requeue", "finish"])
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert "finish" in describe(record, "GONE", in_full=True)


def test_a_local_job_is_cancelled(tmp_path):
    """Also with setup lines, which need a shell."""
    run = tmp_path / "runs" / "cancelled"
    arguments = (*LOCAL, "--name=cancelled", f'--setup=["cd {tmp_path}", "touch \'set up\'"]')
    launch("submit", *arguments, "--", SCRIPT, "--steps=9999", folder=tmp_path)
    wait_for(lambda: (run / "checkpoints").exists())
    assert (tmp_path / "set up").exists()
    assert "cancelled" in launch("cancel", "cancelled", folder=tmp_path)
    wait_for(lambda: [attempt["action"] for attempt in history(run)] == ["end"])
    wait_for(lambda: "GONE" in launch("status", "cancelled", folder=tmp_path))  # it says "end", then exits
    assert "over already" in launch("cancel", "cancelled", folder=tmp_path)


def test_debug_runs_here_and_reports_failure(tmp_path):
    arguments = ("--cluster=debug", *LOCAL[1:], "--max_restarts=0", "--", SCRIPT, "--steps=none")
    output = launch("submit", *arguments, folder=tmp_path, code=1)
    assert "invalid literal for int()" in output
    assert "max_restarts=0 used up" in output
