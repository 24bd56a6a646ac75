"""One attempt at a remote object, as fsspec answers it: its bytes in chunks, its description, a folder's listing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec

from data_pipeline.errors import DataError

_CHUNK = 1 << 20
_BLOCK = 8 << 20  # bytes of one request where a file system has no open-ended answers
_CONNECT_S = 20.0
_STALL_S = 60.0  # a connection that is silent for so long is given up and made anew
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


def read_chunks(
    url: str, start: int, stop: int | None, *, num_bytes: int | None, whole: bool
) -> Iterator[bytes]:
    """Bytes [start, stop), or up to the end; DataError before the first if the object measures not `num_bytes`.

    `whole` says that they are the rest of a whole object, for which a server without ranges may be asked again.
    """
    if _is_http(url):
        return _http_chunks(url, start, stop, num_bytes=num_bytes, whole=whole)
    return _block_chunks(url, start, stop, num_bytes=num_bytes)


def describe(url: str) -> dict[str, Any]:
    """What the file system says about an object: "size", and what changes with its content."""
    file_system, path = _open_file_system(url)
    file_system.invalidate_cache()
    description: dict[str, Any] = file_system.info(path)
    return description


def list_paths(url: str) -> list[str]:
    """Paths of what lies in a folder."""
    file_system, path = _open_file_system(url)
    file_system.invalidate_cache()
    paths: list[str] = file_system.ls(path, detail=False)
    return paths


def _block_chunks(url: str, start: int, stop: int | None, *, num_bytes: int | None) -> Iterator[bytes]:
    file_system, path = _open_file_system(url)
    file_system.invalidate_cache()
    size = int(file_system.info(path)["size"])
    _check_size(url, size, num_bytes)
    end = size if stop is None else min(size, stop)
    for position in range(start, end, _BLOCK):
        wanted = min(_BLOCK, end - position)
        block: bytes = file_system.cat_file(path, start=position, end=position + wanted)
        if len(block) != wanted:
            raise EOFError(f"{len(block)} of {wanted} bytes came")
        yield block


def _http_chunks(
    url: str, start: int, stop: int | None, *, num_bytes: int | None, whole: bool
) -> Iterator[bytes]:
    answer = _ask(url, start, stop)
    if answer is None:
        return
    with answer:  # fsspec's plain stream; `r` is aiohttp's response
        ranged = answer.r.status == _PARTIAL_CONTENT
        if not ranged and not whole:
            raise DataError(
                f"{url!r}: the server sends whole files only, no ranges; copy the file to a disk first"
            )
        size = _size_of(answer.r.headers, ranged=ranged)
        _check_size(url, size, num_bytes)
        position = start if ranged else 0
        end = min((known for known in (size, stop) if known is not None), default=None)
        while (end is None or position < end) and (chunk := answer.read(_CHUNK)):
            # A server without ranges sends all of it: what was asked for is cut out.
            wanted = chunk[max(start - position, 0) : None if end is None else end - position]
            position += len(chunk)
            if wanted:
                yield wanted
    if end is not None and position < end:
        raise EOFError(f"{position} of {end} bytes came")


def _ask(url: str, start: int, stop: int | None) -> Any | None:
    file_system, path = _open_file_system(url)
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
    try:
        # block_size 0 makes it a plain stream of one answer; a size, whatever it is, spares the question for it.
        return file_system.open(path, "rb", block_size=0, size=1, headers=headers)
    except Exception as error:
        if getattr(error, "status", None) == _RANGE_NOT_SATISFIABLE:
            return None  # it ends before `start`
        raise


def _size_of(headers: Any, *, ranged: bool) -> int | None:
    written = (
        headers.get("Content-Range", "").rpartition("/")[2] if ranged else headers.get("Content-Length", "")
    )
    return int(written) if written.isdigit() else None


def _check_size(url: str, size: int | None, expected: int | None) -> None:
    if expected is not None and size is not None and size != expected:
        raise DataError(
            f"{url!r} has {size} bytes, and its index says {expected} bytes: put the right file there, or, if this is "
            "the right one, index it anew (mirada data index)"
        )


def _open_file_system(url: str) -> tuple[Any, str]:
    file_system, path = fsspec.core.url_to_fs(url, **(_http_options() if _is_http(url) else {}))
    return file_system, path


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _http_options() -> dict[str, Any]:
    import aiohttp  # an extra: only those who read over http need it

    # aiohttp's own default ends every answer after 5 minutes, however well it flows.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_STALL_S)
    return {"client_kwargs": {"timeout": timeout}}
