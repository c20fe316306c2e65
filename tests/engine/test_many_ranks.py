"""Ready for many ranks: what a rank other than 0 asks of the file system does not grow with their number.

Where there are 512 of them, a ``stat`` of every shard by each, or an ``fsync`` of every file of a checkpoint, is 512
times as much as is needed, and all of it goes to the same servers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import run_ranks
from support.shards import make_shards

SIZES = (2, 4, 8)
NUM_SHARDS = 12
SETTINGS = [
    "model.name=cav_mae_tiny", "model.image_size=32", "model.audio_length=64", "model.embed_dim=24",
    "model.num_heads=2", "model.modality_depth=1", "model.decoder_embed_dim=16", "model.decoder_depth=1",
    "model.decoder_num_heads=2", "data.num_workers=0", "train.log_interval=1",
    "train.parallel.global_batch_size=8", "train.parallel.zero_stage=1", "schedule.kind=constant",
]  # fmt: skip

#: What each rank asked, by phase.
Asked = list[dict[str, list[str]]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Asked]:
    """By number of ranks, what each asked of a run that began and was saved twice, went on and was saved once."""
    folder = tmp_path_factory.mktemp("many")
    for name in ("shards", "held_out"):
        make_shards(folder / name, NUM_SHARDS, 1, seconds=0.7, size=(48, 40), frames=2)
    words = [*SETTINGS, f"data.train={folder}/shards", f"data.val={folder}/held_out"]
    return {
        size: run_ranks(
            "support.many_ranks:asked",
            size,
            folder=str(folder),
            words=[*words, f"output_dir={folder}/run{size}"],
        )
        for size in SIZES
    }


def files(lines: list[str], kind: str, ending: str = "") -> list[str]:
    """The files of which something was asked."""
    return [line.split()[1] for line in lines if line.startswith(kind) and line.endswith(ending)]


@pytest.mark.parametrize(
    ("phase", "most"), [("begun", 45), ("begun saving", 20), ("resumed", 60), ("resumed saving", 10)]
)
def test_no_more_with_more_ranks(asked: dict[int, Asked], phase: str, most: int) -> None:
    few, *many = (
        # Shards are opened as their clips come.
        [[line for line in rank[phase] if not line.endswith(".tar")] for rank in asked[size][1:]]
        for size in SIZES
    )
    for ranks in many:
        assert max(map(len, ranks)) <= max(map(len, few)) <= most, (few, ranks)


@pytest.mark.parametrize(("attempt", "saved"), [("begun", 2), ("resumed", 1)])
@pytest.mark.parametrize("size", SIZES)
def test_each_rank_has_files_of_its_own(asked: dict[int, Asked], size: int, attempt: str, saved: int) -> None:
    main, *others = asked[size]
    assert set(files(main[attempt], "stat", ".tar")) == {
        f"{name}/shard-{number:06d}.tar" for name in ("shards", "held_out") for number in range(NUM_SHARDS)
    }
    for rank, found in enumerate(others, start=1):
        synced = files(found[f"{attempt} saving"], "sync")
        assert len(synced) == saved
        assert all(f"zero_pp_rank_{rank}_" in path for path in synced), synced
        # DeepSpeed looks for the model's state; nothing else hangs on what another rank than 0 sees in a folder.
        listed = files(found[attempt] + found[f"{attempt} saving"], "list")
        assert all(path.endswith("/deepspeed") for path in listed), listed
        read = files(found[attempt], "open", ".tar")
        assert files(found[attempt], "stat", ".tar") == read
        assert len(read) < NUM_SHARDS


def test_ranks_agree_on_what_rank_0_sees(tmp_path: Path) -> None:
    first, second = run_ranks("support.many_ranks:agreements", 2, folder=str(tmp_path))
    assert first == second
    assert "there is none" in first["error"]
    assert first["teachers"][0] == first["teachers"][1]
    assert (tmp_path / "run" / "teacher" / f"{first['teachers'][0]}.safetensors").is_file()
    # A vote after each of the first two steps, then every eighth, which is 1/4 s of the slower rank.
    assert first["stop"] == {"step": 59, "votes": 9}
