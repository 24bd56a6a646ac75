"""data_pipeline.sidecar: records found by (pass, copy, sample) in batches of any rank and worker, or named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.data import AugmentConfig, CorpusConfig, Weight
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from data_pipeline.loader import ShardLoader
from data_pipeline.sidecar import CHECK, Part, Sidecar, parts_of, write_records
from tests.support.loading import configure, take
from tests.support.shards import make_shards

LENGTHS = [7, 5, 9]
RECORD = np.dtype([CHECK, ("sample", "<i4"), ("of_pass", "<i2"), ("copy", "<i2")])
AGAIN = "mirada teach student.yaml --out answers"
WRITTEN: dict[str, Any] = {"again": AGAIN, "passes": (3,), "further": "mirada teach more"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), LENGTHS, size=(8, 8))


@pytest.fixture(scope="module")
def folder(index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three passes of two copies."""
    folder = tmp_path_factory.mktemp("records")
    for part in parts_of(index, passes=[3], copies=2):
        write_records(part.path(folder), rows_of(index, part), present=np.ones(LENGTHS[part.shard], bool))
    return folder


def rows_of(index: ShardIndex, part: Part) -> np.ndarray:
    rows = np.zeros(LENGTHS[part.shard], RECORD)
    rows["sample"] = np.arange(index.starts[part.shard], index.starts[part.shard + 1])
    rows["of_pass"], rows["copy"] = part.of_pass, part.copy
    return rows


def sidecar_of(folder: Path, index: ShardIndex, augment: AugmentConfig | None = None) -> Sidecar:
    return Sidecar(folder, index, RECORD, augment=augment or AugmentConfig(), **WRITTEN)


def read(sidecar: Sidecar, *wanted: tuple[int, int, int]) -> np.ndarray:
    out = np.zeros((len(wanted), RECORD.itemsize), np.uint8)
    passes, copies, samples = (np.array(column, np.int64) for column in zip(*wanted, strict=True))
    sidecar.read(samples, passes, copies, out)
    return out.view(RECORD)[:, 0]


def test_each_image_gets_the_record_of_its_pass_and_copy(index: ShardIndex, folder: Path) -> None:
    wanted = [(0, 0, 0), (2, 1, 20), (1, 0, 6), (1, 1, 7), (0, 0, 11), (2, 0, 12)]
    found = read(pickle.loads(pickle.dumps(sidecar_of(folder, index))), *wanted)
    assert list(zip(found["of_pass"], found["copy"], found["sample"], strict=True)) == wanted


def test_files_are_plain_npy_with_named_fields(folder: Path) -> None:
    rows = np.load(folder / "pass-0002-copy-1" / "000001.npy", mmap_mode="r")
    assert rows["sample"].tolist() == [7, 8, 9, 10, 11]
    assert rows["copy"].tolist() == [1] * 5


def test_variations_that_come_again_find_the_records_of_the_first_time(
    index: ShardIndex, folder: Path
) -> None:
    found = read(sidecar_of(folder, index, AugmentConfig(passes=3)), (3, 0, 4), (7, 1, 4))
    assert found["of_pass"].tolist() == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_with_the_records_of_their_images_after_a_jump_too(
    index: ShardIndex, folder: Path, workers: int
) -> None:
    for rank in [1] if workers else [0, 1]:
        data = configure(workers=workers, image_size=8, repeats=2)
        loader = ShardLoader(index, data, global_batch=4, seed=0, rank=rank, world_size=2)
        loader.load_state_dict({"version": 1, "epoch": 1, "samples": 8})
        loader.read_beside(sidecar_of(folder, index))
        for batch in take(loader, 5):
            assert batch.records is not None
            rows = batch.records.numpy().view(RECORD)[:, 0]
            assert rows["sample"].tolist() == batch.sample_ids.tolist()
            assert rows["of_pass"].tolist() == batch.epochs.tolist()
            assert rows["copy"].tolist() == batch.copies.tolist()


def test_records_are_split_and_moved_with_their_batch(index: ShardIndex, folder: Path) -> None:
    loader = ShardLoader(index, configure(image_size=8), global_batch=6, seed=0)
    loader.read_beside(sidecar_of(folder, index))
    (batch,) = take(loader, 1)
    parts = [part.to("cpu") for part in batch.split(4)]
    assert [len(part.records) for part in parts if part.records is not None] == [4, 2]
    assert batch.records is not None
    assert torch.equal(torch.cat([part.records for part in parts if part.records is not None]), batch.records)


def test_batches_of_a_loader_without_a_sidecar_have_no_records(index: ShardIndex) -> None:
    (batch,) = take(ShardLoader(index, configure(image_size=8), global_batch=6, seed=0), 1)
    assert batch.records is None and batch.to("cpu").records is None


def test_each_corpus_of_a_mixture_has_passes_of_its_own(tmp_path: Path) -> None:
    make_shards(tmp_path / "first", [4, 4], size=(8, 8))
    make_shards(tmp_path / "second", [3], size=(8, 8), num_classes=None)
    corpus = CorpusConfig(train=str(tmp_path / "second"), weight=Weight(2, "passes"))
    joined = open_training(configure(train=str(tmp_path / "first"), mixture=(corpus,)))
    found = parts_of(joined, passes=[1, 3], copies=1)
    assert found == [Part(0, 0, 0), Part(0, 0, 1), Part(0, 0, 2), Part(1, 0, 2), Part(2, 0, 2)]


def test_a_shard_without_samples_has_no_file(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [2, 3, 1], size=(8, 8))
    index.lengths = np.array([2, 0, 1])  # as where all its samples are left out on purpose
    assert [part.shard for part in parts_of(index, passes=[1], copies=1)] == [0, 2]


def damaged_copy(folder: Path, tmp_path: Path, *, keep: int | None = None, flip: int | None = None) -> Path:
    """One file of a cache, cut after so many bytes or with a bit of one of its last bytes changed."""
    content = bytearray((folder / "pass-0001" / "000000.npy").read_bytes())
    if flip is not None:
        content[-flip] ^= 1
    target = tmp_path / "pass-0001" / "000000.npy"
    target.parent.mkdir()
    target.write_bytes(bytes(content[:keep]))
    return tmp_path


def test_a_missing_file_is_named_with_the_command_that_writes_it(index: ShardIndex, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"pass-0001/000000.npy' is missing; write it with: mirada teach student"
    ):
        read(sidecar_of(tmp_path, index), (1, 0, 3))


@pytest.mark.parametrize("keep", [0, 40, -1])
def test_a_truncated_file_is_named(index: ShardIndex, folder: Path, tmp_path: Path, keep: int) -> None:
    broken = damaged_copy(folder, tmp_path, keep=keep)
    with pytest.raises(
        DataError, match=r"pass-0001/000000.npy' is damaged .*; delete it, and write it again with"
    ):
        read(sidecar_of(broken, index), (1, 0, 3))


def test_one_changed_bit_is_found_by_the_image_it_is_about(
    index: ShardIndex, folder: Path, tmp_path: Path
) -> None:
    broken = damaged_copy(folder, tmp_path, flip=1)  # of row 6
    assert read(sidecar_of(broken, index), (1, 0, 5))["sample"].tolist() == [5]
    with pytest.raises(
        DataError, match=r"is damaged: what it says of image 6 of shard 'test-000000.tar' has not the"
    ):
        read(sidecar_of(broken, index), (1, 0, 6))


def test_an_image_that_could_not_be_read_has_no_record(index: ShardIndex, tmp_path: Path) -> None:
    part = Part(0, 0, 1)
    present = np.array([True, True, False, True, True])
    write_records(part.path(tmp_path), rows_of(index, part), present=present)
    assert read(sidecar_of(tmp_path, index), (0, 0, 8), (0, 0, 10))["sample"].tolist() == [8, 10]
    with pytest.raises(
        DataError, match=r"says nothing about image 2 of shard 'test-000001.tar', which could not be"
    ):
        read(sidecar_of(tmp_path, index), (0, 0, 9))


def test_records_of_another_kind_are_refused(index: ShardIndex, folder: Path) -> None:
    other = Sidecar(folder, index, np.dtype([CHECK, ("x", "<f4")]), augment=AugmentConfig(), **WRITTEN)
    with pytest.raises(DataError, match=r"it has \(7,\) rows of 12 bytes, not 7 of 8"):
        other.read(*(np.zeros(1, np.int64),) * 3, np.zeros((1, 8), np.uint8))


def test_many_files_are_open_at_no_time(index: ShardIndex, tmp_path: Path) -> None:
    """A process may have 1,024 files open, and mappings are such."""
    write_records(tmp_path / "one.npy", np.zeros(7, RECORD), present=np.ones(7, bool))
    sidecar = sidecar_of(tmp_path, index)
    before = len(os.listdir("/proc/self/fd"))
    for of_pass in range(300):
        path = Part(of_pass, 0, 0).path(tmp_path)
        path.parent.mkdir()
        os.link(tmp_path / "one.npy", path)
        read(sidecar, (of_pass, 0, 1))
    assert len(os.listdir("/proc/self/fd")) <= before + 256
