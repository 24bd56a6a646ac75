"""Tars as others write them, and as nobody should: the right answer, or an error that names shard and byte."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.scan import MAX_BYTES, Member, list_members, scan_content

END = bytes(1024)


def block(
    name: bytes = b"a.jpg", size: int | bytes = 0, kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A header block with a right checksum, whatever stands in it."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    header = bytearray(512)
    header[: len(name)], header[124 : 124 + len(field)], header[156:157] = name, field, kind
    header[257 : 257 + len(magic)] = magic
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def file(name: bytes = b"a.jpg", content: bytes = b"image", kind: bytes = b"0") -> bytes:
    return block(name, len(content), kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def pax(**records: str) -> bytes:
    text = b""
    for keyword, value in records.items():
        rest = f" {keyword.replace('__', '.')}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        text += str(length).encode() + rest
    return file(b"pax", text, b"x")


def members(tar: bytes) -> list[tuple[str, bytes]]:
    return [(m.name, tar[m.offset : m.offset + m.size]) for m in list_members(tar, name="t.tar")]


@pytest.mark.parametrize(
    ("tar", "expected"),
    [
        (file(kind=b"\0") + file(b"b.jpg", kind=b"7"), [("a.jpg", b"image"), ("b.jpg", b"image")]),
        (block(b"folder", kind=b"5") + file() + block(b"old/", kind=b"\0"), [("a.jpg", b"image")]),
        (
            block(b"l.jpg", kind=b"1") + block(b"s.jpg", kind=b"2") + block(b"d", kind=b"3") + file(),
            [("a.jpg", b"image")],
        ),
        (file(b"V", b"volume label", b"V") + file(), [("a.jpg", b"image")]),
        (file(b"././@LongLink", b"x" * 300 + b".jpg\0", b"L") + file(), [("x" * 300 + ".jpg", b"image")]),
        (
            pax(path="d/long.jpg", mtime="1.5") + file() + file(b"b.png"),
            [("d/long.jpg", b"image"), ("b.png", b"image")],
        ),
        (
            pax(size="5") + block(size=0) + b"image".ljust(512, b"\0") + file(b"b.png"),
            [("a.jpg", b"image"), ("b.png", b"image")],
        ),
        (file(b"pax", b"20 comment=a commit\n", b"g") + file(), [("a.jpg", b"image")]),
        (block(size=b"\x80" + (5).to_bytes(11, "big")) + b"image".ljust(512, b"\0"), [("a.jpg", b"image")]),
        (block(size=b"  5 ") + b"image".ljust(512, b"\0"), [("a.jpg", b"image")]),
        (
            file(b"../../etc/a.jpg") + file(b"/abs/b.jpg"),
            [("../../etc/a.jpg", b"image"), ("/abs/b.jpg", b"image")],
        ),
        (file(b"a\0b.jpg"), [("a", b"image")]),
        (file(b"\xff\xfe.jpg"), [("\\xff\\xfe.jpg", b"image")]),
    ],
    ids=lambda value: None if isinstance(value, bytes) else ",".join(name[:20] for name, _ in value),
)
def test_members_are_those_that_others_read(tar: bytes, expected: list[tuple[str, bytes]]) -> None:
    assert members(tar + END) == expected
    with tarfile.open(fileobj=io.BytesIO(tar + END)) as theirs:
        sizes = [(entry.name, entry.size) for entry in theirs if entry.isreg()]
    # Python's tarfile prints what is no UTF-8 in another way.
    assert [size for _, size in sizes] == [len(content) for _, content in expected]
    assert [name for name, _ in sizes if name.isprintable()] == [n for n, _ in expected if "\\x" not in n]


DAMAGED: Sequence[tuple[bytes, str]] = [
    (block(size=b"-0000002000\0"), "damaged at byte 0 (number)"),
    (block(size=b"\xff" * 12), "damaged at byte 0 (number)"),
    (block(size=b"00000_000_5\0"), "damaged at byte 0 (number)"),
    (block(size=b"0x5\0"), "damaged at byte 0 (number)"),
    (block(size=b"\x80" + b"\xff" * 11), "'a.jpg' ends at byte"),
    (block(size=10**9), "'a.jpg' ends at byte 1000000512 and the file at 1536"),
    (
        file() + block(kind=b"L", size=2**33 - 1),
        "damaged at byte 1024 (a name or attributes of 8,589,934,591 bytes)",
    ),
    (block(kind=b"x", size=2**21), "damaged at byte 0 (a name or attributes of 2,097,152 bytes)"),
    (block(kind=b"L", size=4000), "is truncated: it ends at byte"),
    (file(b"L", b"name.jpg\0", b"L") * 2 + file(), "damaged at byte 1024 (two names for one member)"),
    (pax(mtime="1") * 1000 + file(), "damaged at byte 1024 (attributes twice for one member)"),
    (pax(path="a.jpg"), "damaged at byte 1024 (a name without a member)"),
    (pax(size="99999") + file(), "'a.jpg' ends at byte"),
    (pax(size="-5") + file(), "damaged at byte 0 (size)"),
    (pax(size="5" * 4000) + file(), "damaged at byte 0 (size)"),
    (pax(path="a\0b.jpg") + file(), "damaged at byte 0 (a name with a zero byte)"),
    (pax(GNU__sparse__major="1") + file(), "damaged at byte 0 (a sparse file"),
    (file(b"pax", b"0 path=a.jpg\n", b"x") + file(), "damaged at byte 0 (attributes)"),
    (file(b"pax", b"5 path=a.jpg\n", b"x") + file(), "damaged at byte 0 (attributes)"),
    (file(b"pax", b"999999 path=a.jpg\n", b"x") + file(), "damaged at byte 0 (attributes)"),
    (file(b"pax", b"no record", b"x") + file(), "damaged at byte 0 (attributes)"),
    (file(b"pax", b"16 path=all.jpg\n", b"g") + file(), "damaged at byte 0 (a name or size for all members)"),
    (file(kind=b"S"), "damaged at byte 0 (a sparse file"),
    (file(kind=b"1") + file(), "damaged at byte 0 (a link, folder or device with content)"),
    (file(kind=b"5") + file(), "damaged at byte 0 (a link, folder or device with content)"),
    (file() + bytes(512) + file(b"b.jpg"), "goes on at byte 1536, after the end marker at byte 1024"),
    (file() + END + file(b"b.jpg"), "goes on at byte 2048, after the end marker at byte 1024"),
    (file() + bytes(5 << 20), "goes on at byte"),
    (file(b"big.cls", b"1" * 65), "'big.cls' at byte 0 has 65 bytes; '.cls' files may have 64"),
    (b"PK\x03\x04" * 500, "is no tar, or damaged at byte 0"),
]


@pytest.mark.parametrize(("tar", "message"), DAMAGED, ids=[message for _, message in DAMAGED])
def test_what_cannot_be_read_in_one_way_only_is_refused(tar: bytes, message: str) -> None:
    with pytest.raises(DataError, match="shard 't.tar'.*" + re.escape(message)):
        members(tar + END)


class Hole:
    """A file of any size of which only its first bytes are not zero, as a sparse file would be."""

    def __init__(self, head: bytes, size: int) -> None:
        self.head, self.size, self.most = head, size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self.size)
        self.most = max(self.most, stop - start)
        return self.head[start:stop].ljust(stop - start, b"\0")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            b"a.jpg",
            2**33 - 1,
            r"'a.jpg' at byte 0 has 8,589,934,591 bytes; '.jpg' files may have 268,435,456",
        ),
        (b"a.json", 2**30, r"'.json' files may have 16,777,216"),
        (b"a.mp4", 2**33 - 1, r"holds no samples \(ignored are {'mp4': 1}\)"),
    ],
)
def test_members_of_any_size_cost_no_memory(name: bytes, size: int, message: str) -> None:
    tar = Hole(block(name, size), 2**34 - 2**20)
    tar.size = 512 + -(-size // 512) * 512 + 1024
    with pytest.raises(DataError, match=message):
        scan_content(tar, name="t.tar")
    assert tar.most <= 4 << 20


def test_members_with_other_suffixes_are_ignored_and_counted() -> None:
    tar = (
        file() + file(b"a.cls", b"3") + file(b"a.npy") + file(b"a.pth") + file(b"b.seg.png") + file(b"README")
    )
    tar += block(b"c.jpg", kind=b"1") + file(b"._a.jpg") + file(b"__x.json") + block(b"folder", kind=b"5")
    scanned = scan_content(tar + file(b"b.JPEG") + file(b"b.txt") + file(b"b.cls", b"0") + END, name="t.tar")
    assert scanned.keys == ("a", "b")
    assert scanned.ignored == {"npy": 1, "pth": 1, "seg.png": 1, "(no suffix)": 1, "(hard link)": 1}


def test_the_count_of_ignored_members_is_bounded_whatever_their_names() -> None:
    tar = b"".join(file(b"a.%d" % number + b"x" * 90) for number in range(300)) + file() + END
    scanned = scan_content(tar, name="t.tar")
    assert len(scanned.ignored) == 51 and sum(scanned.ignored.values()) == 300
    assert max(map(len, scanned.ignored)) == 40


def test_names_that_are_no_text_stay_apart() -> None:
    scanned = scan_content(file(b"\xff.jpg") + file(b"\xfe.jpg") + END, name="t.tar")
    assert scanned.keys == ("\\xff", "\\xfe")


def test_only_what_is_used_has_a_bound() -> None:
    assert set(MAX_BYTES) == {"jpg", "jpeg", "png", "webp", "cls", "txt", "json"}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(min_size=1), st.binary(max_size=1500)), max_size=5), st.sampled_from([0, 1, 2])
)
def test_every_tar_of_pythons_is_read_as_python_reads_it(
    files: list[tuple[str, bytes]], tar_format: int
) -> None:
    names = [
        f"{number}{name.encode('utf-8', 'replace').decode().replace(chr(0), '')}.png"
        for number, (name, _) in enumerate(files)
    ]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
        for name, (_, content) in zip(names, files, strict=True):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            try:
                tar.addfile(entry, io.BytesIO(content))
            except ValueError:  # too long for ustar
                return
    assert members(stream.getvalue()) == [
        (name, content) for name, (_, content) in zip(names, files, strict=True)
    ]


@pytest.mark.parametrize("cut", [511, 512, 1024, 1535, 1536, 2047])
def test_a_cut_within_the_last_member_or_before_the_end_marker_is_an_error(cut: int) -> None:
    with pytest.raises(DataError, match="is truncated"):
        members((file(content=b"x" * 1500) + END)[:cut])


def test_a_member_knows_its_key_and_suffix() -> None:
    member = Member(name="a.b/c.seg.PNG", offset=0, size=1)
    assert (member.key, member.suffix) == ("a.b/c", "seg.png")


@pytest.mark.parametrize("write", [lambda tar: tar, lambda tar: tar + bytes(10240 - len(tar) % 10240)])
def test_padding_after_the_end_marker_is_no_fault(write: Callable[[bytes], bytes], tmp_path: Path) -> None:
    assert members(write(file() + END)) == members(file() + bytes(512)) == [("a.jpg", b"image")]
