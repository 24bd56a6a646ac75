from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.base import ConfigError
from data_pipeline.__main__ import app
from tests.support.images import encoded_image, make_image_folder
from tests.support.shards import draw_image, encode, write_tar


def run(*arguments: object) -> str:
    """What the command printed; a user's mistake is raised."""
    done = CliRunner().invoke(app, ["build", *map(str, arguments)], terminal_width=200)
    if isinstance(done.exception, ConfigError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "source", per_class=2)


def test_help_names_every_choice_of_a_source_and_what_happens_to_images() -> None:
    text = " ".join(run("--help").split())
    for part in (
        "--splits",
        "--max-side",
        "EXIF",
        "--skip-missing",
        "--task",
        "SLURM",
        "KEY.json",
        "never larger",
    ):
        assert part in text, part


def test_splits_are_reported_one_by_one(tmp_path: Path) -> None:
    for name in ("train", "val"):
        make_image_folder(tmp_path / "in" / name, per_class=1)
    told = run(tmp_path / "in", tmp_path / "out", "--splits", "train,val")
    assert told == "".join(
        f"{tmp_path}/out/{name}: 3 samples, 3 classes, 1 shard (image folder)\n" for name in ("train", "val")
    )


def test_a_task_says_what_it_wrote_and_the_last_one_what_there_is(source: Path, tmp_path: Path) -> None:
    options = (source, tmp_path / "out", "--shard-size", 2, "--task")
    first = run(*options, "1/2")
    assert "task 1 of 2 wrote 2 shards; 2 of 3 are there, and the task that writes the last one" in first
    assert run(*options, "2/2") == f"{tmp_path}/out: 6 samples, 3 classes, 3 shards (image folder)\n"
    assert "complete already" in run(*options, "1/2")


def test_broken_images_are_named_or_left_out(source: Path, tmp_path: Path) -> None:
    (source / "cat" / "broken.jpg").write_bytes(encoded_image(1, "JPEG", (90, 90))[:700])
    assert "7 samples" in run(source, tmp_path / "as-they-are")
    with pytest.raises(ConfigError, match=r"'cat/broken.jpg' does not decode: .*--skip-broken"):
        run(source, tmp_path / "out", "--max-side", 20)
    told = run(source, tmp_path / "out", "--max-side", 20, "--skip-broken", "--fresh")
    assert "6 samples, 3 classes" in told
    assert "left out: 1 image, missing or broken, listed in" in told and "'cat/broken.jpg'" in told
    assert (tmp_path / "out" / "_skipped.jsonl").read_text().count("\n") == 1
    again = run(source, tmp_path / "out", "--max-side", 20, "--skip-broken")
    assert "6 samples, 3 classes" in again and "left out: 1 image, missing or broken" in again


def test_fields_that_no_shard_carries_are_counted(tmp_path: Path) -> None:
    image = encode(draw_image(1))
    members = [
        (f"{key}.{suffix}", content)
        for key in ("a", "b")
        for suffix, content in (
            ("json", b"{}"),
            ("mask.png", image),
            ("npy", b"x"),
            ("png", image),
            ("webp", image),
        )
    ]
    write_tar(tmp_path / "in.tar", members)
    told = run(tmp_path / "in.tar", tmp_path / "out")
    assert "left out: members of the tars that no shard carries: 2 mask.png, 2 npy, 2 webp" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "gif"], r"--format 'gif': one of jpg, png, webp is needed"),
        (
            ["--quality", "80"],
            r"--quality is for images that are decoded, and without --max-side or --format",
        ),
        (["--skip-broken"], r"--skip-broken is for images that are decoded"),
        (["--name", "a/b"], r"--name 'a/b': letters, digits"),
        (["--name", "x", "--splits", "all"], r"--name names one split, and --splits takes the names"),
        (["--splits", "train"], r"no folder 'train' for --splits; there are: cat, dog, eel"),
        (["--splits", ","], r"--splits ',': names with commas between them"),
        (["--task", "3/2"], r"--task '3/2': K/N with K from 1 to N"),
        (["--task", "1/2", "--fresh"], r"--fresh would delete what other tasks write"),
        (["--columns", "a"], r"--columns chooses columns of a .csv or .parquet manifest, and this is none"),
        (["--shard-bytes", "many"], r"--shard-bytes 'many': a number of bytes such as 300MB"),
    ],
)
def test_wrong_options_are_explained_and_write_nothing(
    source: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(source, tmp_path / "out", *options)
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*.partial"))
