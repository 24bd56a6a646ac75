from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.packing.tar_stream import TarStream
from data_pipeline.scan import list_members


def written(members: list[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """The tar of these members, and where their contents begin."""
    content = bytearray()

    def sink(pieces: list[bytes]) -> None:
        for piece in pieces:
            content.extend(piece)

    stream = TarStream(sink)
    offsets = [stream.add(name, body) for name, body in members]
    stream.finish()
    return bytes(content), offsets


def by_tarfile(members: list[tuple[str, bytes]]) -> bytes:
    """The same by Python's own writer, with the settings that webdataset's TarWriter hands it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w|") as tar:
        for name, body in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uname, entry.gname = len(body), 0o444, "mirada", "mirada"
            tar.addfile(entry, io.BytesIO(body))
    return file.getvalue()


@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513], [1500] * 30, [3_000_000, 5]])
def test_the_bytes_are_those_of_tarfile(sizes: list[int]) -> None:
    members = [
        (f"album/{place:06d}.jpg", bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        for place, size in enumerate(sizes)
    ]
    assert written(members)[0] == by_tarfile(members)


@settings(deadline=None)
@given(
    folders=st.lists(
        st.text("abü漢 .", min_size=1, max_size=70).filter(lambda name: name.strip(".")), max_size=4
    ),
    base=st.text("xyz09é", min_size=1, max_size=150),
)
def test_names_of_any_length_and_script_are_read_back(folders: list[str], base: str) -> None:
    name = "/".join([*folders, f"{base}.jpg"])
    content, (offset, _) = written([(name, b"image"), ("after.cls", b"7")])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == [name, "after.cls"]
        assert tar.extractfile(tar.getmembers()[0]).read() == b"image"
    assert next((member.name, member.offset) for member in list_members(content, name="x")) == (name, offset)
