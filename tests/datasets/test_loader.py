import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.shards import make_shards
from support.videos import write_video

from datasets.batch import AVBatch
from datasets.loading import loader as loading
from datasets.loading.loader import ClipLoader, ClipNeeds, DataConfig, TrainShare, middle_frame, random_frame
from datasets.media.container import read_media
from datasets.shards.table import ClipTable
from datasets.shards.tar import ShardError

TENSORS = (
    "rows",
    "seeds",
    "waveform",
    "num_samples",
    "frames",
    "labels",
    "frame_index",
    "num_stored",
    "frame_times",
)
SIZE: dict[str, Any] = {"image_size": 16, "num_samples": 4000}


def train_loader(
    config: DataConfig,
    image_size: int = 16,
    num_samples: int = 4000,
    train_frames: Any = random_frame,
    **share,
) -> ClipLoader:
    needs = ClipNeeds(image_size=image_size, num_samples=num_samples, train_frames=train_frames)
    return loading.train_loader(config, needs, TrainShare(**share))


def evaluation_loader(
    config: DataConfig, folder: Path, image_size: int, num_samples: int, **options
) -> ClipLoader:
    needs = ClipNeeds(image_size=image_size, num_samples=num_samples)
    return loading.evaluation_loader(config, folder, needs, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three shards of 20 clips: fewer than ranks times workers."""
    return make_shards(tmp_path_factory.mktemp("set"), 20, 7, seconds=0.2, frames=3)


def make_config(folder: Path, **options) -> DataConfig:
    return DataConfig(str(folder), **{"num_workers": 0, "shuffle_window": 2, **options})


def join(parts: list[AVBatch]) -> AVBatch:
    """The global batch that ranks have in parts."""
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    return AVBatch(ids=[name for part in parts for name in part.ids], **tensors)


def assert_same(one: AVBatch, other: AVBatch) -> None:
    assert one.ids == other.ids
    for name in TENSORS:
        assert getattr(one, name).equal(getattr(other, name)), name


def global_batches(
    folder: Path, world_size: int, num_workers: int, count: int, **options
) -> Iterator[AVBatch]:
    loaders = [
        train_loader(
            make_config(folder, num_workers=num_workers),
            seed=3,
            global_batch_size=6,
            rank=rank,
            world_size=world_size,
            **SIZE,
            **options,
        )
        for rank in range(world_size)
    ]
    parts = zip(*map(iter, loaders), strict=True)
    return (join(list(batch)) for batch in islice(parts, count))


@pytest.fixture(scope="module")
def reference(folder) -> list[AVBatch]:
    return list(global_batches(folder, 1, 0, 7))


def test_batches_are_complete(reference):
    batch: Any = reference[0]
    assert len(batch) == 6
    assert (batch.waveform.shape, batch.waveform.dtype) == ((6, 4000), torch.int16)
    assert batch.num_samples.tolist() == [3200] * 6
    assert not batch.waveform[:, 3200:].any()
    assert (batch.frames.shape, batch.frames.dtype) == ((6, 1, 3, 16, 16), torch.uint8)
    assert batch.labels.argmax(dim=1).tolist() == [row % 3 for row in batch.rows.tolist()]
    assert sorted(row for batch in reference for row in batch.rows.tolist())[:6] == [0, 0, 1, 1, 2, 2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on a machine of fewer cores
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (1, 4), (2, 0), (3, 0), (3, 1)])
def test_global_batches_are_the_same_for_every_number_of_ranks_and_workers(
    folder, reference, world_size, num_workers
):
    for step, batch in enumerate(global_batches(folder, world_size, num_workers, 7)):
        assert_same(batch, reference[step])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_start_at_any_step_equals_having_run_there(folder, reference, num_workers):
    later = global_batches(folder, 2, num_workers, 3, start_step=4)
    for step, batch in enumerate(later, start=4):
        assert_same(batch, reference[step])


def test_micro_batches_make_the_step(folder, reference):
    loaders = [
        train_loader(
            make_config(folder),
            seed=3,
            global_batch_size=6,
            num_micro_batches=3,
            rank=rank,
            world_size=2,
            start_step=1,
            num_steps=3,
            **SIZE,
        )
        for rank in range(2)
    ]
    micro = [join(list(parts)) for parts in zip(*loaders, strict=True)]
    assert len(micro) == 6
    assert_same(join(micro[:3]), reference[1])
    assert_same(join(micro[3:]), reference[2])


def test_loading_leaves_the_global_random_state_alone(folder):
    loader = train_loader(make_config(folder), seed=0, global_batch_size=4, num_steps=2, **SIZE)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(loader)) == 2
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_visits_every_clip_once(folder, world_size, num_workers):
    config = make_config(folder, num_workers=num_workers)
    seen = []
    for rank in range(world_size):
        loader = evaluation_loader(config, folder, batch_size=3, rank=rank, world_size=world_size, **SIZE)
        seen += [row for batch in loader for row in batch.rows.tolist()]
    assert sorted(seen) == list(range(20))


def test_evaluation_is_the_same_for_every_number_of_ranks(folder):
    def clips(world_size):
        config = make_config(folder)
        parts = [
            batch
            for rank in range(world_size)
            for batch in evaluation_loader(
                config, folder, batch_size=4, rank=rank, world_size=world_size, **SIZE
            )
        ]
        return join(parts)

    assert_same(clips(1), clips(3))


def test_a_bad_clip_is_replaced_alike_by_every_number_of_ranks_and_workers(folder, tmp_path):
    bad = make_shards(tmp_path, 20, 7, seconds=0.2, frames=3)
    table = ClipTable.open(bad)
    shard = bad / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    extent = table.members(9)[table.audio_slots[0]]
    content[extent.offset + 512 : extent.offset + 1024] = bytes(512)
    shard.write_bytes(content)
    runs = []
    for world_size, num_workers in ((1, 0), (2, 2)):
        runs.append(list(global_batches(bad, world_size, num_workers, 7)))
    for one, other in zip(*runs, strict=True):
        assert_same(one, other)
    assert all(9 not in batch.rows.tolist() for batch in runs[0])
    loader = train_loader(make_config(bad), seed=3, global_batch_size=20, num_steps=2, **SIZE)
    assert [[failure.id for failure in batch.failures] for batch in loader] == [["clip-00009"]] * 2
    evaluation = list(evaluation_loader(make_config(bad), bad, batch_size=1, **SIZE))
    assert [len(batch) for batch in evaluation] == [1] * 9 + [0] + [1] * 10
    assert evaluation[9].failures[0].shard == "shard-000001.tar"


def test_a_set_at_a_url(folder, tmp_path, reference):
    config = DataConfig(f"pipe:cat {folder}/{{}}", num_workers=2, shuffle_window=2, cache_dir=str(tmp_path))
    loader = train_loader(config, seed=3, global_batch_size=6, num_steps=7, **SIZE)
    for batch, expected in zip(loader, reference, strict=True):
        assert_same(join([batch]), expected)


def test_settings_that_can_not_be(folder, tmp_path):
    for options, message in (
        ({"train": ""}, "data.train"),
        ({"num_workers": -1}, "data.num_workers must be 0 or more, not -1"),
        ({"prefetch_factor": 0}, "data.prefetch_factor"),
        ({"shuffle_window": 0}, "data.shuffle_window"),
        ({"cache_gb": 0.0}, "data.cache_gb"),
        ({"max_bad_fraction": 1.5}, "data.max_bad_fraction"),
        (
            {"val": "s3://bucket/set"},
            "data.cache_dir must name a folder to keep the shards of s3://bucket/set in",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**{"train": "x", **options})
    with pytest.raises(ValueError, match="20 clips, fewer than one global batch of 24"):
        train_loader(make_config(folder), seed=0, global_batch_size=24)
    with pytest.raises(
        ValueError, match="global_batch_size 8 does not divide by 1 accumulated micro-batches times 3"
    ):
        train_loader(make_config(folder), seed=0, global_batch_size=8, world_size=3)
    with pytest.raises(ShardError, match="nowhere does not exist"):
        train_loader(make_config(tmp_path / "nowhere"), seed=0, global_batch_size=8)
    small = DataConfig(f"pipe:cat {folder}/{{}}", cache_dir=str(tmp_path), cache_gb=1e-4)
    with pytest.raises(ValueError, match=r"data.cache_gb 0.0001 is too small for data.shuffle_window 16"):
        train_loader(small, seed=0, global_batch_size=8)


def test_frame_choice_is_the_callers(folder):
    config = make_config(folder)
    loader = train_loader(config, seed=3, global_batch_size=6, num_steps=1, train_frames=middle_frame, **SIZE)
    batch: Any
    (batch,) = loader
    assert ((batch.frames[:, 0, 1].float().mean(dim=(1, 2)) - 23).abs() <= 3).all()


def collect_garbage(num_stored: int, seed: int) -> tuple[int]:
    gc.collect()
    return (0,)


@pytest.mark.timeout(60)
def test_workers_do_not_wait_for_threads_of_videos_that_the_parent_has_read(folder, tmp_path):
    gc.disable()
    try:
        read_media(write_video(tmp_path / "a.mp4"))  # leaves threads to the garbage collector
        loader = train_loader(
            make_config(folder, num_workers=1),
            seed=3,
            global_batch_size=6,
            num_steps=1,
            train_frames=collect_garbage,
            **SIZE,
        )
        assert len(list(loader)) == 1
    finally:
        gc.enable()


@pytest.mark.timeout(60)
def test_a_worker_heeds_its_trainer_alone(folder):
    loader = train_loader(make_config(folder, num_workers=1), seed=3, global_batch_size=6, **SIZE)
    batches = iter(loader)
    next(batches)
    own: Any = loader.batches._iterator  # of the watched loader, which keeps its workers
    (worker,) = own._workers
    for number in (signal.SIGTERM, signal.SIGUSR1):
        subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
    for _ in range(12):  # more than were read ahead
        next(batches)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(20)
    assert worker.exitcode == 0
    own._shutdown_workers()
