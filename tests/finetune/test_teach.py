"""mirada teach: the same files from any number of ranks, through any kill; longer on demand; else refused."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from configs.base import ConfigError
from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.loader import ShardLoader
from data_pipeline.sidecar import Part
from finetune.cache_folder import wait_for_parts
from finetune.cache_manifest import Extent, read_manifest
from finetune.config import FinetuneConfig
from finetune.follow import follow_checkpoint
from finetune.teacher_cache import open_teacher_cache
from tests.support.loading import take
from tests.support.run_distributed import start_ranks
from tests.support.taught import LENGTHS, configure, make_corpus, make_release, recipe, write_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teach")
    make_corpus(folder / "data")
    make_release(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    return write_cache(made(folder), folder / "cache")


def made(folder: Path, **changes: Any) -> FinetuneConfig:
    return configure(folder / "data", folder / "teacher", **changes)


def content_of(cache: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_a_cache_has_a_file_per_shard_and_pass_and_a_manifest_at_its_end(cache: Path) -> None:
    files = {f"pass-000{of_pass}/00000{shard}.npy" for of_pass in range(2) for shard in range(3)}
    assert content_of(cache).keys() == files | {"answers.json"}
    for shard, length in enumerate(LENGTHS):
        rows = np.load(cache / "pass-0001" / f"00000{shard}.npy", mmap_mode="r")
        assert len(rows) == length
        assert (rows["offsets"][:, 0] == 0).all() and (np.diff(rows["offsets"].astype(float)) <= 0).all()
        assert (rows["maps"].max(axis=1) == 1).all()
    manifest = read_manifest(cache)
    assert manifest is not None and manifest.taught == manifest.wanted == Extent(passes=(2,), copies=1)


def test_size_per_crop_and_of_the_whole_is_said_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_cache(made(folder), tmp_path / "cache", top=3, grid=2)
    said = capsys.readouterr().out
    assert (
        f"{out}: 36 bytes for each of 64 crops (32 images, 2 passes): 0.0 MB; 6 of 6 files are to be" in said
    )
    assert f"students read it with teacher.cache={out}" in said
    payload = sum(path.stat().st_size for path in out.rglob("*.npy")) / 64
    assert 36 <= payload < 36 + 6 * 512 / 64  # and a header per file


def test_a_second_call_writes_nothing(folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    write_cache(made(folder), cache)
    assert "0 of 6 files are to be written" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before


def test_passes_are_added_and_what_was_there_stays(folder: Path, cache: Path, tmp_path: Path) -> None:
    out = write_cache(made(folder), tmp_path / "cache", epochs=1)
    first = content_of(out)
    config = made(folder, teacher__cache=str(out))
    with pytest.raises(
        ConfigError, match="it holds 1 pass over the data, and this run goes through 2 passes"
    ):
        open_teacher_cache(config, open_index(str(folder / "data")))
    write_cache(made(folder), out)
    open_teacher_cache(config, open_index(str(folder / "data")))
    grown = content_of(out)
    files = [name for name in grown if name.endswith(".npy")]
    assert all(grown[name] == content_of(cache)[name] for name in files) and len(files) == 6
    assert all(grown[name] == first[name] for name in first if name.endswith(".npy"))


def test_a_damaged_file_that_was_deleted_is_written_as_it_was(folder: Path, cache: Path) -> None:
    before = content_of(cache)
    (cache / "pass-0001" / "000001.npy").unlink()
    write_cache(made(folder), cache)
    assert content_of(cache) == before


def test_copies_and_variations_that_come_again_are_counted(folder: Path, tmp_path: Path) -> None:
    config = made(folder, data__repeats=2, data__augment__passes=1, train__duration="9 epochs")
    out = write_cache(config, tmp_path / "cache")
    assert sorted(path.name for path in out.iterdir()) == ["answers.json", "pass-0000", "pass-0000-copy-1"]
    first, second = (np.load(out / name / "000000.npy") for name in ("pass-0000", "pass-0000-copy-1"))
    assert not np.array_equal(first["best"], second["best"])


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        ({}, {"top": 5}, "top is 10 there and 5 here"),
        ({}, {"grid": 2}, "grids is ((4, 4),) there and ((2, 2),) here"),
        ({"train__seed": 1}, {}, "train.seed is 0 there and 1 here"),
        ({"teacher__attention": None}, {}, "layers is (-1,) there and () here"),
        ({"train__precision": "bf16"}, {}, "precision is 'fp32' there and 'bf16' here"),
    ],
)
def test_a_folder_with_other_answers_is_refused_and_stays_as_it_is(
    folder: Path, cache: Path, change: dict[str, Any], options: dict[str, int], named: str
) -> None:
    before = content_of(cache)
    with pytest.raises(ConfigError, match="holds other answers: ") as error:
        write_cache(made(folder, **change), cache, **options)
    assert named in str(error.value) and "go on as it was begun (mirada teach " in str(error.value)
    assert content_of(cache) == before


def test_a_folder_with_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(ConfigError, match="is there already and is no teacher cache: name a new folder"):
        write_cache(made(folder), tmp_path)
    with pytest.raises(ConfigError, match="is there already and is no teacher cache: name a new folder"):
        write_cache(made(folder), tmp_path / "letter.txt")


def test_recipes_that_no_answer_can_be_kept_for_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="what a crop is mixed with depends on the batch"):
        write_cache(made(folder, data__augment__cutmix=1.0), tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"the recipe has no teacher to ask: set teacher.checkpoint"):
        write_cache(made(folder, teacher=None), tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"teacher.sharded: all ranks ask a sharded teacher at once"):
        write_cache(made(folder, teacher__sharded=True), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_crops_are_those_that_a_students_checkpoint_decides(folder: Path, tmp_path: Path) -> None:
    """A recipe that leaves size, channels and statistics to what the student starts from."""
    content = recipe(folder / "data", folder / "teacher", checkpoint=str(folder / "teacher"))
    content["data"] = {"train": str(folder / "data"), "workers": 0}
    del content["model"], content["teacher"]["attention"]
    out = write_cache(FinetuneConfig.model_validate(content), tmp_path / "cache")
    manifest = read_manifest(out)
    assert manifest is not None and manifest.crops["data.image_size"] == 28
    content["teacher"]["cache"] = str(out)
    config, _ = follow_checkpoint(FinetuneConfig.model_validate(content))
    open_teacher_cache(config, open_index(str(folder / "data")))


def test_a_teacher_of_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    make_release(tmp_path / "other", classes=("a", "b"))
    with pytest.raises(ConfigError, match="knows 2 classes and the student has 10"):
        write_cache(made(folder, teacher__checkpoint=str(tmp_path / "other")), tmp_path / "cache")


def test_images_that_are_none_are_left_out_and_training_never_asks_for_them(tmp_path: Path) -> None:
    make_corpus(tmp_path / "data", bad={5: b"no image"})
    make_release(tmp_path / "teacher")
    config = made(tmp_path, data__max_bad_fraction=0.1)
    out = write_cache(config, tmp_path / "cache")
    rows = np.load(out / "pass-0000" / "000000.npy")
    assert [row for row in range(13) if not rows[row : row + 1].view(np.uint8).any()] == [5]
    index = open_index(str(tmp_path / "data"))
    replay = open_teacher_cache(made(tmp_path, data__max_bad_fraction=0.1, teacher__cache=str(out)), index)
    loader = ShardLoader(index, config.data, global_batch=8, seed=0)
    loader.read_beside(replay.sidecar)
    assert 5 not in {sample for batch in take(loader, 8) for sample in batch.sample_ids.tolist()}
    with pytest.raises(DataError, match="1 of 32 images cannot be used"):
        write_cache(made(tmp_path), tmp_path / "strict")


def test_a_rank_that_is_done_waits_for_the_files_of_others(tmp_path: Path) -> None:
    part = Part(2, 0, 1)
    part.path(tmp_path).parent.mkdir()
    late = threading.Timer(0.2, part.path(tmp_path).touch)
    late.start()
    wait_for_parts(tmp_path, [part, part])
    assert part.path(tmp_path).exists()
    late.join()


@pytest.mark.slow
def test_what_a_kill_interrupts_two_ranks_finish_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    content = recipe(folder / "data", folder / "teacher", train__duration="12 epochs")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "cache"
    arguments = [str(tmp_path / "student.yaml"), "--out", str(out), "--batch-size=8"]
    held = ["tests/support/held_teach.py", str(out / "pass-0003" / "000001.npy")]
    ranks = start_ranks([*held, *arguments], world_size=1)
    ranks.wait_until(lambda: (out / "pass-0003" / "000000.npy").exists())
    ranks.kill()
    assert len(list(out.rglob("*.npy"))) == 10
    (out / "pass-0003" / ".000001.npy.host.1.partial").write_bytes(b"half")
    ranks = start_ranks(["-m", "finetune.teach", *arguments])
    assert ranks.wait() == [0, 0], ranks.outputs
    assert re.search(r"\d+ of 36 files are to be written", ranks.outputs[0])
    assert "36 of 36" not in ranks.outputs[0] and "finished" not in ranks.outputs[1]
    whole = write_cache(made(folder, train__duration="12 epochs"), tmp_path / "whole")
    files = {name: data for name, data in content_of(out).items() if name != "answers.json"}
    assert files == {name: data for name, data in content_of(whole).items() if name != "answers.json"}
    assert len(files) == 36
