from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data_pipeline.errors import DataError
from data_pipeline.storage.remote import list_folder, read_all, read_range, remote_size, stream
from tests.support.nginx import NginxServer, missing_for_nginx, nginx_server, wait_until
from tests.support.s3_server import S3Server, missing_for_s3, s3_server

CONTENT = os.urandom(3_000_000)

needs_nginx = pytest.mark.skipif(bool(missing_for_nginx()), reason=f"needs nginx: {missing_for_nginx()}")
needs_s3 = pytest.mark.skipif(bool(missing_for_s3()), reason=f"needs an S3 server: {missing_for_s3()}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NginxServer]:
    root = tmp_path_factory.mktemp("served")
    (root / "corpus").mkdir()
    (root / "corpus" / "a.tar").write_bytes(CONTENT)
    (root / "corpus" / "b c.tar").write_bytes(b"")
    with nginx_server(tmp_path_factory.mktemp("nginx"), root) as running:
        yield running


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        bucket = fsspec.filesystem("s3")
        bucket.mkdir("corpus")
        with bucket.open("corpus/train/a.tar", "wb") as file:
            file.write(CONTENT)
        bucket.touch("corpus/train/b.tar")
        yield running


@needs_nginx
@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (5, 5), (512, 1024), (2_999_999, 3_000_000), (2_999_990, 3_000_010), (4_000_000, 4_000_001)],
)
def test_a_range_over_http_is_the_files_bytes(server: NginxServer, start: int, stop: int) -> None:
    assert read_range(f"{server.url}/corpus/a.tar", start, stop) == CONTENT[start:stop]


@needs_nginx
def test_a_range_is_one_request_and_no_more_bytes_than_asked_for(server: NginxServer) -> None:
    before = len(server.requests())
    read_range(f"{server.url}/corpus/a.tar", 1024, 1536)
    wait_until(lambda: len(server.requests()) > before)
    (asked,) = server.requests()[before:]
    assert (asked.status, asked.range) == (206, "bytes=1024-1535")
    assert asked.bytes_sent < 1024


@needs_nginx
def test_sizes_and_names_over_http(server: NginxServer) -> None:
    assert remote_size(f"{server.url}/corpus/a.tar") == 3_000_000
    assert list_folder(f"{server.url}/corpus") == ["a.tar", "b%20c.tar"]
    assert remote_size(f"{server.url}/corpus/b%20c.tar") == 0
    assert read_all(f"{server.url}/corpus/b%20c.tar", 10) == b""


@needs_nginx
def test_reading_all_follows_redirects_and_is_limited(server: NginxServer) -> None:
    assert read_all(f"{server.url}/moved/corpus/a.tar", 3_000_000) == CONTENT
    with pytest.raises(DataError, match=r"corpus/a.tar' has more than the 2,999,999 bytes allowed here"):
        read_all(f"{server.url}/corpus/a.tar", 2_999_999)


@needs_nginx
def test_an_object_larger_or_smaller_than_its_index_says_is_refused_before_a_byte_of_it_comes(
    server: NginxServer,
) -> None:
    for num_bytes in (2_999_999, 3_000_001):
        with pytest.raises(DataError, match=rf"has 3000000 bytes, and its index says {num_bytes} bytes"):
            next(stream(f"{server.url}/corpus/a.tar", num_bytes=num_bytes))


@needs_nginx
@pytest.mark.parametrize(
    ("path", "cause"),
    [("none.tar", "FileNotFoundError"), ("private/a.tar", "the server answers 403 Forbidden")],
)
def test_what_cannot_pass_fails_at_once_with_url_and_cause(
    server: NginxServer, path: str, cause: str
) -> None:
    with pytest.raises(DataError, match=rf"'{server.url}/{path}' cannot be read: {cause}.*check the address"):
        read_all(f"{server.url}/{path}", 10)
    wait_until(lambda: bool(server.requests(f"/{path}")))
    assert len(server.requests(f"/{path}")) == 1


@needs_nginx
def test_a_server_without_ranges_gives_whole_files_and_no_parts(server: NginxServer) -> None:
    assert b"".join(stream(f"{server.url}/whole/corpus/a.tar")) == CONTENT
    with pytest.raises(DataError, match="the server sends whole files only, no ranges"):
        read_range(f"{server.url}/whole/corpus/a.tar", 512, 1024)


@needs_nginx
@pytest.mark.parametrize("fault", ["unavailable", "hanging-up"])
def test_a_server_that_refuses_for_a_while_is_asked_again(server: NginxServer, fault: str) -> None:
    before = len(server.requests())
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_range(f"{server.url}/corpus/a.tar", 7, 11)))
    with server.fault(fault):
        reader.start()
        wait_until(lambda: len(server.requests()) >= before + 2)
    reader.join(120)
    assert got == [CONTENT[7:11]]


@needs_nginx
@pytest.mark.parametrize(
    ("fault", "cause"),
    [("unavailable", "the server answers 503 "), ("hanging-up", "ServerDisconnectedError")],
)
def test_a_server_that_refuses_for_too_long_is_an_error_with_url_and_cause(
    server: NginxServer, fault: str, cause: str
) -> None:
    with server.fault(fault), pytest.raises(DataError) as raised:
        remote_size(f"{server.url}/corpus/a.tar", patience_s=0.5)
    assert f"'{server.url}/corpus/a.tar' cannot be read: {cause}" in str(raised.value)
    assert "attempts in" in str(raised.value)


@needs_nginx
@pytest.mark.parametrize("folder", ["corpus", "whole/corpus"])
def test_a_cut_connection_goes_on_with_the_byte_after_the_last(
    tmp_path: Path, server: NginxServer, folder: str
) -> None:
    # More than a slow server sends, and than buffers on the way hold, before it is killed.
    whole = os.urandom(10 * len(CONTENT))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.tar").write_bytes(whole)
    with nginx_server(tmp_path / "nginx", tmp_path) as own:
        with own.fault("slow"):
            chunks = stream(f"{own.url}/{folder}/a.tar")
            content = next(chunks)
            own.kill()
        own.start()
        content += b"".join(chunks)
        wait_until(lambda: any(request.bytes_sent > len(whole) // 2 for request in own.requests()))
        last = own.requests()[-1]
    assert content == whole
    assert last.range != "bytes=0-"
    assert last.range.endswith("-")


def test_a_host_that_is_not_there_is_an_error_with_url_and_cause() -> None:
    with pytest.raises(DataError, match=r"'http://127.0.0.1:9/a.tar' cannot be read: ClientConnectorError"):
        read_all("http://127.0.0.1:9/a.tar", 10, patience_s=0.2)


@needs_s3
def test_ranges_sizes_names_and_whole_objects_from_s3(s3: S3Server) -> None:
    url = "s3://corpus/train/a.tar"
    assert remote_size(url) == 3_000_000
    assert read_range(url, 512, 1024) == CONTENT[512:1024]
    assert read_range(url, 2_999_990, 3_000_010) == CONTENT[-10:]
    assert read_range(url, 4_000_000, 4_000_010) == b""
    assert read_all(url, 3_000_000) == CONTENT
    assert list_folder("s3://corpus/train") == ["a.tar", "b.tar"]
    assert read_all("s3://corpus/train/b.tar", 0) == b""


@needs_s3
def test_what_is_not_in_s3_or_has_another_size_is_named(s3: S3Server) -> None:
    with pytest.raises(DataError, match=r"'s3://corpus/none.tar' cannot be read: FileNotFoundError"):
        read_all("s3://corpus/none.tar", 10)
    with pytest.raises(DataError, match=r"'s3://elsewhere' cannot be read: FileNotFoundError"):
        list_folder("s3://elsewhere")
    with pytest.raises(DataError, match=r"has 3000000 bytes, and its index says 7 bytes"):
        next(stream("s3://corpus/train/a.tar", num_bytes=7))


def test_an_absent_extra_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("s3absent", "a_package_nobody_has.S3", errtxt="Install s3fs to access S3")
    with pytest.raises(
        DataError,
        match=r"needs a package that is not installed \(Install s3fs to access S3\).*'mirada\[s3\]'",
    ):
        read_all("s3absent://corpus/a.tar", 10)


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "simplecache::http://host/a", "s3://$BUCKET/a.tar"])
def test_commands_chains_and_variables_are_refused(url: str) -> None:
    for ask in (remote_size, list_folder):
        with pytest.raises(DataError, match="is not allowed"):
            ask(url)
    with pytest.raises(DataError, match="is not allowed"):
        read_range(url, 0, 10)


def test_an_unknown_protocol_is_an_error() -> None:
    with pytest.raises(DataError, match=r"'nothing://a.tar' cannot be read: ValueError: Protocol not known"):
        read_all("nothing://a.tar", 10)
