"""Each kind of fault at 200 random places: `mirada data verify` names shard, key and what to do, every time.

Each is planted twice: into shards that are indexed already, and before they are indexed. Then the index either refuses
them in the same terms, or verify finds the fault. That an image does not decode is PIL's judgement, not ours.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.inspection.shard_check import Fault
from data_pipeline.inspection.verify import verify
from data_pipeline.reindex import index_shards
from tests.support.shards import write_tar

PLACES = 200
NUM_SHARDS, PER_SHARD = 3, 5
CLASSES = ("ant", "bee", "cat", "dog")
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
REMEDY = re.compile(
    r"copy .*(shard|it) again|build (the shard|it|these shards) again|label all samples|write a|allowed are"
)
Members = list[tuple[str, bytes]]


@dataclass
class Corpus:
    """The files of three small shards before they are written, and the dice."""

    rng: np.random.Generator
    shards: list[Members]

    def below(self, count: int) -> int:
        return int(self.rng.integers(count))

    def pick(self) -> tuple[int, int, str]:
        """A random shard, the place of a random image in it (its label stands before it), and the key."""
        shard, place = self.below(NUM_SHARDS), 2 * self.below(PER_SHARD) + 1
        return shard, place, self.shards[shard][place][0].partition(".")[0]


@dataclass(frozen=True)
class Planted:
    """What verify has to say: that shard (or, of two, either), one of those keys, and a text."""

    shards: tuple[int, ...]
    keys: tuple[str | None, ...]
    says: str


def file_out_of_order(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    members = corpus.shards[shard]
    moved = members.pop(place)
    # Between other samples, and not beside its own label, which stands at place - 1.
    targets = [*range(0, place - 1, 2), *range(place + 2, len(members) + 1, 2)]
    members.insert(targets[corpus.below(len(targets))], moved)
    return Planted((shard,), (key,), "its files stand in 2 places|has no image|occurs twice")


def key_twice_side_by_side(corpus: Corpus) -> Planted:
    shard, place, _ = corpus.pick()
    members, place = corpus.shards[shard], min(place, 2 * PER_SHARD - 3)
    key = members[place][0].partition(".")[0]
    rename(members, place + 2, key)
    return Planted((shard,), (key,), "two files of (suffix 'cls'|one suffix)")


def key_twice_apart(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    far = [other for other in range(1, 2 * PER_SHARD, 2) if abs(other - place) > 2]
    rename(corpus.shards[shard], far[corpus.below(len(far))], key)
    return Planted((shard,), (key,), "stand in 2 places|occurs twice")


def key_in_two_shards(corpus: Corpus) -> Planted:
    shard, _, key = corpus.pick()
    other = (shard + 1 + corpus.below(NUM_SHARDS - 1)) % NUM_SHARDS
    rename(corpus.shards[other], 2 * corpus.below(PER_SHARD) + 1, key)
    return Planted((shard, other), (key,), r"shard-\d.tar has a sample of this key too")


def key_missing(corpus: Corpus) -> Planted:
    shard, place, _ = corpus.pick()
    folder = ("", "folder/")[corpus.below(2)]
    rename(corpus.shards[shard], place, folder)
    return Planted((shard,), (folder,), "has no key before its first dot")


def key_with_dot(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    rename(corpus.shards[shard], place, f"{key}.{corpus.below(1000)}")
    return Planted((shard,), (key,), "the file name holds a dot before")


def image_missing(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    del corpus.shards[shard][place]
    return Planted((shard,), (key,), r"no image (among|\(it has) \['cls'\]")


def label_missing(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    del corpus.shards[shard][place - 1]
    return Planted((shard,), (key,), "no .cls")


def file_twice(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    members, place = corpus.shards[shard], place - corpus.below(2)
    members.insert(place, members[place])
    return Planted((shard,), (key,), "two files of (suffix|one suffix)")


def image_cut(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    encoded = corpus.shards[shard][place][1]
    replace(corpus, shard, place, encoded[: corpus.below(len(encoded))])
    return Planted((shard,), (key,), "image does not decode|is no image")


def image_damaged(corpus: Corpus) -> Planted:
    while True:
        shard, place, key = corpus.pick()
        encoded = bytearray(corpus.shards[shard][place][1])
        start = corpus.below(len(encoded))
        length = min(1 + corpus.below(40), len(encoded) - start)
        encoded[start : start + length] = corpus.rng.bytes(length)
        if not decodes(bytes(encoded)):
            replace(corpus, shard, place, bytes(encoded))
            return Planted((shard,), (key,), "image does not decode|is no image|by content")


def image_of_another_kind(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    name = corpus.shards[shard][place][0]
    others = [kind for kind in KINDS if not name.endswith(kind)]
    strange = [ENCODED[0, kind] for kind in others] + [b"", b"no image", b"GIF89a" + bytes(20)]
    replace(corpus, shard, place, strange[corpus.below(len(strange))])
    return Planted((shard,), (key,), "file is '(jpg|png|webp)' by content|file is no image")


def image_too_large(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    name, encoded = corpus.shards[shard][place]
    sides = 14_000 + corpus.below(2_000), 13_000 + corpus.below(2_000)
    replace(corpus, shard, place, ENLARGE[name.rpartition(".")[2]](encoded, *sides))
    return Planted((shard,), (key,), "too many pixels")


def label_outside_the_class_map(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    label = len(CLASSES) + (0, corpus.below(50), corpus.below(2**40))[corpus.below(3)]
    replace(corpus, shard, place - 1, b"%d" % label)
    return Planted((shard,), (key,), rf"label {label}\b|cls holds b'{label}'")


def label_that_is_no_number(corpus: Corpus) -> Planted:
    shard, place, key = corpus.pick()
    texts = (b"cat", b"", b"-1", b"1.5", b"\xff", b"0x1", b"1 2", b"1\n2")
    replace(corpus, shard, place - 1, texts[corpus.below(len(texts))])
    return Planted((shard,), (key,), r"\.cls holds b")


FAULTS = (
    file_out_of_order,
    key_twice_side_by_side,
    key_twice_apart,
    key_in_two_shards,
    key_missing,
    key_with_dot,
    image_missing,
    label_missing,
    file_twice,
    image_cut,
    image_damaged,
    image_of_another_kind,
    image_too_large,
    label_outside_the_class_map,
    label_that_is_no_number,
)


@pytest.mark.slow
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_planted_after_indexing_is_found_at_200_places(
    tmp_path: Path, plant: Callable[[Corpus], Planted]
) -> None:
    for corpus in corpora(plant):
        if not (tmp_path / "_info.json").exists():
            write(tmp_path, corpus)
            index_shards(str(tmp_path), classes=CLASSES)
            assert verify(str(tmp_path), deep=True).faults == ()
        planted = plant(corpus)
        write(tmp_path, corpus)
        expect(planted, verify(str(tmp_path), deep=plant in (image_cut, image_damaged)).faults)


@pytest.mark.slow
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_planted_before_indexing_is_refused_or_found_at_200_places(
    tmp_path: Path, plant: Callable[[Corpus], Planted]
) -> None:
    for corpus in corpora(plant):
        planted = plant(corpus)
        write(tmp_path, corpus)
        try:
            index_shards(str(tmp_path), classes=CLASSES)
        except DataError as error:
            assert REMEDY.search(str(error)) and re.search(planted.says, str(error)), str(error)
            assert any(f"shard-{shard}.tar" in str(error) for shard in planted.shards), str(error)
            assert any(repr(key) in str(error) for key in planted.keys), str(error)
        else:
            expect(planted, verify(str(tmp_path), deep=plant in (image_cut, image_damaged)).faults)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_shard_cut_at_any_byte_is_found_at_200_places(tmp_path: Path, suffix: str) -> None:
    (corpus,) = corpora(image_cut, places=1)
    for number, members in enumerate(corpus.shards):
        write_tar(tmp_path / f"shard-{number}.{suffix}", members)
    index_shards(str(tmp_path), classes=CLASSES)
    for _ in range(PLACES):
        shard = corpus.below(NUM_SHARDS)
        file = tmp_path / f"shard-{shard}.{suffix}"
        whole = file.read_bytes()
        kept = corpus.below(len(whole))
        file.write_bytes(whole[:kept])
        found = [fault for fault in verify(str(tmp_path)).faults if fault.shard == file.name]
        text = " | ".join(map(str, found))
        assert re.search("is truncated|is empty|cannot mmap an empty|it has", text) and REMEDY.search(text), (
            text
        )
        names = {f"'{name.partition('.')[0]}'" for name, _ in corpus.shards[shard]}
        lost = re.search(r"(\d) of 5 samples", text)
        if suffix == "tar" and kept >= 512:  # below, not even the first name can be read
            assert lost is None or any(name in text for name in names), text
        file.write_bytes(whole)


@pytest.mark.slow
def test_a_shard_cut_before_it_is_indexed_is_refused_unless_only_padding_is_gone(tmp_path: Path) -> None:
    (corpus,) = corpora(image_cut, places=1)
    whole = write_tar(tmp_path / "whole", corpus.shards[0]).read_bytes()
    last = len(whole.rstrip(b"\0"))
    for _ in range(PLACES):
        kept = corpus.below(len(whole))
        (tmp_path / "shard-0.tar").write_bytes(whole[:kept])
        try:
            made = index_shards(str(tmp_path))
        except DataError as error:
            assert re.search("is truncated|is empty", str(error)) and "shard-0.tar" in str(error)
        else:
            assert kept >= last and made.num_samples == PER_SHARD


@pytest.mark.slow
def test_a_flipped_bit_is_found_at_200_places(tmp_path: Path) -> None:
    (corpus,) = corpora(image_cut, places=1)
    write(tmp_path, corpus)
    index_shards(str(tmp_path), classes=CLASSES)
    for _ in range(PLACES):
        file = tmp_path / f"shard-{corpus.below(NUM_SHARDS)}.tar"
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[corpus.below(len(whole))] ^= 1 << corpus.below(8)
        file.write_bytes(changed)
        faults = verify(str(tmp_path)).faults
        assert {fault.shard for fault in faults} == {file.name}
        assert "checksum is not the one in its index" in faults[0].problem and REMEDY.search(str(faults[0]))
        file.write_bytes(whole)


@pytest.mark.slow
def test_a_lost_sample_is_found_at_200_places(tmp_path: Path) -> None:
    for corpus in corpora(image_cut):
        if not (tmp_path / "_info.json").exists():
            write(tmp_path, corpus)
            index_shards(str(tmp_path), classes=CLASSES)
        shard, place, _ = corpus.pick()
        members = corpus.shards[shard]
        del members[place - 1 : place + 1]
        write(tmp_path, corpus)
        found = [
            fault for fault in verify(str(tmp_path)).faults if "samples, its index says" in fault.problem
        ]
        assert [fault.shard for fault in found] == [f"shard-{shard}.tar"]
        if place < len(members):  # the sample that stands in its place is named
            assert found[0].key == members[place][0].partition(".")[0]
        else:
            assert f"after key {members[-1][0].partition('.')[0]!r}" in found[0].problem


def corpora(plant: Callable[[Corpus], Planted], places: int = PLACES) -> Iterator[Corpus]:
    """A fresh corpus for each place, with dice of its own."""
    for place in range(places):
        rng = np.random.default_rng([place, FAULTS.index(plant)])
        shards = []
        for shard in range(NUM_SHARDS):
            members: Members = []
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                members.append((f"{number:06d}.cls", b"%d" % (number % len(CLASSES))))
                kind = list(KINDS)[number % len(KINDS)]
                members.append((f"{number:06d}.{kind}", ENCODED[number, kind]))
            shards.append(members)
        yield Corpus(rng=rng, shards=shards)


def expect(planted: Planted, faults: tuple[Fault, ...]) -> None:
    """One of the faults says all that is to be said."""
    names = [f"shard-{shard}.tar" for shard in planted.shards]
    named = [fault for fault in faults if fault.shard in names and fault.key in planted.keys]
    assert any(re.search(planted.says, fault.problem) and REMEDY.search(fault.remedy) for fault in named), (
        planted,
        list(map(str, faults)),
    )


def write(folder: Path, corpus: Corpus) -> None:
    for number, members in enumerate(corpus.shards):
        write_tar(folder / f"shard-{number}.tar", members)


def rename(members: Members, place: int, key: str) -> None:
    """Gives the image at a place, and the label before it, another key."""
    for member in (place - 1, place):
        name, content = members[member]
        members[member] = f"{key}.{name.partition('.')[2]}", content


def replace(corpus: Corpus, shard: int, place: int, content: bytes) -> None:
    corpus.shards[shard][place] = corpus.shards[shard][place][0], content


def decodes(encoded: bytes) -> bool:
    """Whether PIL takes it."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):
        return False
    return True


def enlarge_jpeg(encoded: bytes, width: int, height: int) -> bytes:
    start = encoded.index(b"\xff\xc0")
    return encoded[: start + 5] + struct.pack(">HH", height, width) + encoded[start + 9 :]


def enlarge_png(encoded: bytes, width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">II", width, height) + encoded[24:29]
    return encoded[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + encoded[33:]


def enlarge_webp(encoded: bytes, width: int, height: int) -> bytes:
    assert encoded[12:16] == b"VP8 "
    return encoded[:26] + struct.pack("<HH", width, height) + encoded[30:]


ENLARGE = {"jpg": enlarge_jpeg, "png": enlarge_png, "webp": enlarge_webp}


def picture(number: int, kind: str) -> bytes:
    rng = np.random.default_rng(number)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8), (5, 5), 0)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, KINDS[kind])
    return encoded.getvalue()


ENCODED = {
    (number, kind): picture(number, kind) for number in range(NUM_SHARDS * PER_SHARD) for kind in KINDS
}
