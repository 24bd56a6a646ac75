"""TarHeader: the 512-byte blocks of a tar, read strictly: what two programs could read differently is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass

BLOCK = 512
FILE_KINDS = frozenset({b"0", b"\0", b"7"})
LONG_NAME = b"L"
"""GNU: what follows is the name of the next member."""
ATTRIBUTES = frozenset({b"x", b"X"})
"""POSIX: what follows are attributes (pax records) of the next member."""
SHARED_ATTRIBUTES = b"g"
"""POSIX: attributes of all members that follow."""
FOLDER = b"5"
LINKS = {b"1": "hard link", b"2": "symbolic link"}

_KINDS_WITHOUT_CONTENT = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_SPARSE = b"S"
_OCTAL = re.compile(rb"[0-7]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")


@dataclass(frozen=True, slots=True, kw_only=True)
class TarHeader:
    """What one header block says."""

    name: str
    size: int
    """Bytes that follow; the next header begins at the block after them."""
    kind: bytes


def parse_header(block: bytes) -> TarHeader:
    """The header in a block; ValueError says what is wrong with it."""
    stored = _octal(block[148:156])
    if stored != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ValueError("checksum")
    size, kind = _number(block[124:136]), block[156:157]
    if size and kind in _KINDS_WITHOUT_CONTENT:
        raise ValueError("a link, folder or device with content")
    if kind == _SPARSE:
        raise ValueError("a sparse file (tar --sparse)")
    return TarHeader(name=header_name(block), size=size, kind=kind)


def header_name(block: bytes) -> str:
    """The name in a header block itself, which a long name or attributes before it may replace."""
    name, prefix = _text(block[:100]), _text(block[345:500])
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def parse_long_name(content: bytes) -> str:
    """The name that stands in the content of a LONG_NAME member."""
    return _text(content)


def parse_attributes(content: bytes) -> tuple[str | None, int | None]:
    """Name and size in pax records (``27 path=folder/name.jpg``), None where there is none; ValueError if malformed."""
    name = size = None
    position = 0
    while position < len(content):
        record = _RECORD.match(content, position)
        end = position + int(record[1]) if record else 0
        if record is None or end > len(content) or end <= record.end() or content[end - 1 : end] != b"\n":
            raise ValueError("attributes")
        keyword, value = record[2], content[record.end() : end - 1]
        if keyword.startswith(b"GNU.sparse."):
            raise ValueError("a sparse file (tar --sparse)")
        if keyword == b"path":
            if b"\0" in value:
                raise ValueError("a name with a zero byte")
            name = _decoded(value)
        elif keyword == b"size":
            if not value.isdigit() or len(value) > 20:
                raise ValueError("size")
            size = int(value)
        position = end
    return name, size


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: base 256 for sizes of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int:
    digits = field.split(b"\0", 1)[0].strip(b" ")
    # NOTE: int() takes signs and underscores as well: a size of -1024 would lead back to a header read before.
    if not _OCTAL.fullmatch(digits):
        raise ValueError("number")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return _decoded(field.split(b"\0", 1)[0])


def _decoded(name: bytes) -> str:
    # Not "replace", by which two names could become one; not "surrogateescape", which cannot be printed or hashed.
    return name.decode("utf-8", "backslashreplace")
