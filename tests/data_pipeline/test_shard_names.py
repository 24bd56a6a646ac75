"""What people write for their shards, and what is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.shard_names import find_names


@pytest.mark.parametrize(
    ("location", "urls"),
    [
        ("https://host/a.tar", ["https://host/a.tar"]),
        ("s3://bucket/x/a-{8..10}.tar", [f"s3://bucket/x/a-{number}.tar" for number in (8, 9, 10)]),
        (
            "https://host/a-{008..010}.tar.gz",
            [f"https://host/a-0{number}.tar.gz" for number in ("08", "09", "10")],
        ),
        ("/data/{b,a}-{0..1}.tgz", [f"/data/{name}-{number}.tgz" for name in "ba" for number in (0, 1)]),
        ("file:///data/a.tar", ["/data/a.tar"]),
        ("a.tar", ["./a.tar"]),
    ],
)
def test_names_are_spelled_out_in_order(location: str, urls: list[str]) -> None:
    assert find_names(location).urls == urls


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 8))
def test_ranges_are_padded_as_they_are_written(first: int, count: int, width: int) -> None:
    pattern = f"a-{{{first:0{width}d}..{first + count:0{width}d}}}.tar"
    names = find_names(f"https://host/{pattern}").names
    assert len(names) == count + 1
    assert [int(name[2:-4]) for name in names] == list(range(first, first + count + 1))
    assert names[0] == f"a-{first:0{width}d}.tar" or len(str(first + count)) > width


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("https://host/a-{5..3}.tar", r"the range '\{5..3\}' is empty"),
        ("https://host/a-{0..999999999999}.tar", "names 1,000,000,000,000 shards; 1,000,000 are allowed"),
        ("https://host/{0..9999}{0..9999}.tar", "names 100,000,000 shards"),
        ("https://host/{a,a}.tar", "names a shard twice"),
        ("https://host/{a}.tar", "neither a range like"),
        ("https://host/{0..3}/a.tar", "braces may stand in the file name only"),
        ("https://host/a.tar?token=x", "an address that ends in a query"),
        ("https://me:secret@host/a.tar", "the address holds a password"),
        ("/none/at/all", "is not a folder"),
    ],
)
def test_what_cannot_be_meant_is_said(location: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find_names(location)
    assert "secret" not in str(caught.value)


def test_a_folder_gives_its_tars_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tgz", "c.tar.gz", "_info.json", "d.tar.index.npy"):
        (tmp_path / name).touch()
    found = find_names(f"{tmp_path}/")
    assert (found.base, found.names, found.is_remote) == (
        str(tmp_path),
        ("a.tgz", "b.tar", "c.tar.gz"),
        False,
    )
