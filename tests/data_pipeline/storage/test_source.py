from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.storage.source import check_size, refuse_commands, resolve

ROOT = Path(__file__).parents[3]


def test_packaged_data_lies_beside_the_code() -> None:
    assert resolve("mirada://sample/train") == str(ROOT / "data_pipeline" / "sample" / "train")
    assert resolve("/somewhere/else") == "/somewhere/else"


def test_packaged_locations_cannot_leave_the_package() -> None:
    with pytest.raises(DataError, match="leaves the package"):
        resolve("mirada://../configs")


def test_a_shard_that_is_missing_or_cut_is_named_with_what_its_index_says(tmp_path: Path) -> None:
    whole = tmp_path / "a.tar"
    whole.write_bytes(bytes(100))
    check_size(str(whole), 100, name="a.tar")
    with pytest.raises(
        DataError, match=r"shard 'a.tar' has 100 bytes, and its index says 101 bytes: copy it again"
    ):
        check_size(str(whole), 101, name="a.tar")
    with pytest.raises(DataError, match=r"shard 'b.tar' is not at .*b\.tar', and its index says 7 bytes"):
        check_size(str(tmp_path / "b.tar"), 7, name="b.tar")


@pytest.mark.parametrize(
    "url", ["pipe:rm -rf /", "PIPE:ls", "zip://a::pipe:ls", "simplecache::http://host/a.tar"]
)
def test_commands_and_chains_are_refused(url: str) -> None:
    with pytest.raises(DataError, match="is not allowed: a shard is a file or URL"):
        refuse_commands(url)


@pytest.mark.parametrize(
    "url", ["s3://bucket/$HOME/a.tar", "https://host/${TOKEN}/a.tar", "http://$HOST/a.tar"]
)
def test_the_environment_is_never_put_into_a_url(url: str) -> None:
    with pytest.raises(DataError, match="environment variables are not put into URLs; write it out"):
        refuse_commands(url)


def test_a_price_in_a_name_is_no_variable() -> None:
    refuse_commands("s3://bucket/5$-notes/a.tar")
    refuse_commands("/data/$oddly/named.tar")
