from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.inspection.verify import verify
from data_pipeline.packing.build_plan import Layout, plan_build
from data_pipeline.packing.corpus import Choice
from data_pipeline.packing.pack import Effort, build
from data_pipeline.packing.recode import Recoding
from data_pipeline.packing.record import Corpus, Record, Span
from data_pipeline.packing.shard_pool import Stopped
from data_pipeline.packing.shard_writer import Treatment, write_shard
from data_pipeline.packing.share import Share
from data_pipeline.shard import describe_shard
from tests.support.images import encoded_image, make_image_folder
from tests.support.nginx import wait_until
from tests.support.packed import content_of, samples_of
from tests.support.processes import has_ended
from tests.support.stalling_disk import StallingDisk

ROOT = Path(__file__).resolve().parents[3]
SMALL = Layout(shard_size=5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "source", per_class=8)


def test_webdataset_reads_the_very_bytes_of_every_image_with_its_label(source: Path, tmp_path: Path) -> None:
    built = build(source, tmp_path / "out", layout=SMALL)
    expected = {
        path.read_bytes(): ("cat", "dog", "eel").index(path.parent.name) for path in source.rglob("*.*")
    }
    samples = samples_of(tmp_path / "out")
    packed = {
        sample[suffix]: int(sample["cls"])
        for sample in samples
        for suffix in ("jpg", "png", "webp")
        if suffix in sample
    }
    assert packed == expected
    assert [sample["__key__"] for sample in samples] == [f"{number:06d}" for number in range(24)]
    assert (built.num_samples, built.num_classes, built.num_shards, built.num_shards_written) == (24, 3, 5, 5)


def test_the_index_names_classes_and_counts_and_verifies(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", layout=Layout(name="val", shard_size=7))
    index = open_index(str(tmp_path / "out"))
    assert (index.classes, index.split, list(index.lengths)) == (("cat", "dog", "eel"), "val", [7, 7, 7, 3])
    assert sorted(index.labels()) == [0] * 8 + [1] * 8 + [2] * 8
    assert verify(str(tmp_path / "out"), deep=True).faults == ()


@pytest.mark.parametrize("gzip", [False, True])
def test_bytes_do_not_depend_on_the_number_of_processes_or_the_place(
    source: Path, tmp_path: Path, gzip: bool
) -> None:
    layout = Layout(shard_size=5, gzip=gzip)
    build(source, tmp_path / "one", layout=layout, effort=Effort(num_workers=1))
    build(source, tmp_path / "other", layout=layout, effort=Effort(num_workers=3))
    assert content_of(tmp_path / "one") == content_of(tmp_path / "other")


def test_a_second_run_finds_nothing_to_do(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", layout=SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert build(source, tmp_path / "out", layout=SMALL).num_shards_written == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.slow
def test_workers_stop_when_their_parent_is_killed_and_a_second_run_goes_on(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "source", per_class=40)
    build(source, tmp_path / "whole", layout=Layout(shard_size=2))
    target = tmp_path / "out"
    command = [sys.executable, "-m", "data_pipeline", "build", str(source), str(target)]
    command += ["--shard-size", "2", "--workers", "2"]
    disk = StallingDisk(tmp_path / "disk", num_syncs=36)  # six for each shard
    with subprocess.Popen(
        command, cwd=ROOT, env=disk.environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        wait_until(lambda: len(list(target.glob("*.tar"))) >= 2)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    disk.release()
    wait_until(lambda: all(has_ended(worker) for worker in workers))
    assert not (target / "_info.json").exists()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert content_of(target) == content_of(tmp_path / "whole")


@settings(max_examples=15, deadline=None)
@given(stop_after=st.integers(1, 24))
def test_a_shard_that_was_stopped_is_not_there(
    stop_after: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "x.png").write_bytes(encoded_image(0))
    size = (folder / "x.png").stat().st_size
    records = [
        Record(name=str(n), image=Span(str(folder / "x.png"), 0, size), suffix="png", label=0)
        for n in range(24)
    ]
    corpus = Corpus(kind="test", records=records, classes=("x",), stamps=())
    (job,) = plan_build(corpus, Layout(), folder).jobs
    calls = iter(range(1, 100))

    def on_record() -> None:
        if next(calls) == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        write_shard(job, on_record)
    assert sorted(path.name for path in folder.iterdir()) == ["x.png"]


def test_leftovers_of_a_killed_writer_are_removed(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "whole", layout=SMALL)
    target = tmp_path / "out"
    build(source, target, layout=SMALL, effort=Effort(share=Share(index=0, count=2)))
    (target / "train-000002.tar").rename(target / ".train-000002.tar.node1.4711.partial")
    assert build(source, target, layout=SMALL).num_shards_written == 3
    assert content_of(target) == content_of(tmp_path / "whole")


def test_the_index_written_on_the_way_is_that_of_the_finished_tars(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", layout=SMALL)
    build(source, tmp_path / "zipped", layout=Layout(shard_size=5, gzip=True))
    for folder in (tmp_path / "out", tmp_path / "zipped"):
        index = open_index(str(folder))
        for place, shard in enumerate(index.shards):
            found, scanned = describe_shard(shard.url)
            assert (found.num_samples, found.num_bytes, found.digest) == (
                shard.num_samples,
                shard.num_bytes,
                shard.digest,
            )
            assert (scanned.rows == index.rows(place)).all()


def test_a_lost_index_is_made_anew_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", layout=SMALL)
    before = content_of(tmp_path / "out")
    (tmp_path / "out" / "_info.json").unlink()
    build(source, tmp_path / "out", layout=SMALL)
    assert content_of(tmp_path / "out") == before


@pytest.mark.parametrize("change", ["content", "new file", "option"])
def test_a_changed_source_or_option_is_noticed_and_fresh_begins_anew(
    source: Path, tmp_path: Path, change: str
) -> None:
    build(source, tmp_path / "out", layout=SMALL)
    layout = Layout(shard_size=4 if change == "option" else 5)
    if change == "content":
        (source / "cat" / "000.jpg").write_bytes(encoded_image(77, "JPEG", (9, 9)))
    elif change == "new file":
        (source / "cat" / "new.png").write_bytes(encoded_image(78))
    with pytest.raises(DataError, match=r"holds a build of other input.*--fresh"):
        build(source, tmp_path / "out", layout=layout)
    build(source, tmp_path / "out", layout=layout, effort=Effort(fresh=True))
    build(source, tmp_path / "whole", layout=layout)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_a_source_that_changes_during_the_build_is_noticed(source: Path, tmp_path: Path) -> None:
    file = source / "cat" / "000.jpg"
    span = Span(str(file), 0, file.stat().st_size, whole=True)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"000\.jpg: .* the file changed since it was listed"):
        span.read()
    file.unlink()
    with pytest.raises(DataError, match=r"000\.jpg: gone since it was listed"):
        span.read()


def test_nothing_is_written_when_the_source_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images below it"):
        build(tmp_path / "empty", tmp_path / "a" / "out")
    assert not (tmp_path / "a").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(DataError, match=r"not empty \(it holds 'thesis.txt'\)"):
            build(source, tmp_path / "out", effort=Effort(fresh=fresh))
    assert content_of(tmp_path / "out") == {"thesis.txt": b"mine"}
    with pytest.raises(DataError, match="lies in the source"):
        build(source, source / "out")
    with pytest.raises(DataError, match="is a file: name a folder"):
        build(source, tmp_path / "out" / "thesis.txt")


def test_two_builds_do_not_write_to_one_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".build.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing to"):
            build(source, tmp_path / "out")
    assert build(source, tmp_path / "out").num_shards_written == 1


def test_content_decides_about_the_suffix_and_strangers_are_listed(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "source", classes=("cat",), per_class=1)
    (source / "cat" / "png.JPEG").write_bytes(encoded_image(3))
    (source / "cat" / "text.png").write_bytes(b"not an image")
    built = build(source, tmp_path / "out", choice=Choice(shuffle=False))
    assert [set(sample) - {"__key__", "cls"} for sample in samples_of(tmp_path / "out")] == [
        {"jpg"},
        {"png"},
        {"png"},
    ]
    assert built.strangers == ("cat/text.png",)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5_000), min_size=1, max_size=60),
    shard_size=st.integers(1, 20),
    shard_bytes=st.integers(1, 30_000),
)
def test_shards_keep_order_and_limits(sizes: list[int], shard_size: int, shard_bytes: int) -> None:
    records = [Record(name=str(n), image=Span("x", 0, size), suffix="png") for n, size in enumerate(sizes)]
    corpus = Corpus(kind="test", records=records, classes=(), stamps=())
    jobs = plan_build(corpus, Layout(shard_size=shard_size, shard_bytes=shard_bytes), Path("out")).jobs
    assert [record for job in jobs for record in job.records] == records
    assert [job.first_number for job in jobs] == [
        sum(len(job.records) for job in jobs[:n]) for n in range(len(jobs))
    ]
    for job in jobs:
        num_bytes = sum(record.image.size for record in job.records)
        assert 1 <= len(job.records) <= shard_size
        assert num_bytes <= shard_bytes or len(job.records) == 1


def test_shards_hold_neither_times_nor_users(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "out" / "train-000000.tar").read_bytes())) as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {
            (0, 0, "mirada", 0o444)
        }


def test_unlabelled_images_have_no_label_file(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", choice=Choice(unlabelled=True))
    assert not any("cls" in sample for sample in samples_of(tmp_path / "out"))
    assert open_index(str(tmp_path / "out")).classes == ()


def test_file_and_class_names_of_any_script_and_of_none_are_packed(tmp_path: Path) -> None:
    names = ["schöne Grüße", "猫", os.fsdecode(b"caf\xe9")]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / f"{name}.png").write_bytes(encoded_image(number))
    build(tmp_path / "in", tmp_path / "out")
    assert open_index(str(tmp_path / "out")).classes == tuple(sorted(names))
    assert build(tmp_path / "in", tmp_path / "out").num_shards_written == 0


@pytest.mark.parametrize("format", ["jpg", "webp", None])
def test_bytes_of_encoded_images_do_not_depend_on_the_number_of_processes(
    source: Path, tmp_path: Path, format: str | None
) -> None:
    treatment = Treatment(recoding=Recoding(max_side=6, format=format))
    build(source, tmp_path / "one", layout=SMALL, treatment=treatment, effort=Effort(num_workers=1))
    build(source, tmp_path / "other", layout=SMALL, treatment=treatment, effort=Effort(num_workers=2))
    assert content_of(tmp_path / "one") == content_of(tmp_path / "other")
    assert verify(str(tmp_path / "one"), deep=True).faults == ()
    with pytest.raises(DataError, match="holds a build of other input"):
        build(source, tmp_path / "one", layout=SMALL)


def test_a_full_disk_says_so_and_leaves_no_half_shard(source: Path, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys, errno, os; from pathlib import Path\n"
        "from data_pipeline.packing import pack, shard_writer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n"
        "shard_writer._NO_SPACE = (errno.EFBIG,)\n"
        "pack.build(Path(sys.argv[1]), Path(sys.argv[2]), effort=pack.Effort(num_workers=1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "make room and run the same command again" in done.stderr
    assert not list((tmp_path / "out").glob(".*.partial")) and not list((tmp_path / "out").glob("*.tar"))
    build(source, tmp_path / "whole")
    build(source, tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
