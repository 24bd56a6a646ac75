"""SampleCheck: what can be wrong with one sample of a tar: its files, its key, its label, its image."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.packing.record import suffix_of
from data_pipeline.pixels.decode import DecodeError, decode, read_header
from data_pipeline.scan import MAX_BYTES, NO_LABEL, SUFFIXES, Member

_HEAD_BYTES = 64 << 10
"""Of an image, where its header is looked for first."""
_MAX_LABEL_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSample:
    """The files of one key that lie side by side."""

    key: str
    members: tuple[Member, ...]

    def member(self, *suffixes: str) -> Member | None:
        """The first member with one of these suffixes, in the order of the suffixes."""
        by_suffix = {member.suffix: member for member in self.members}
        return next((by_suffix[suffix] for suffix in suffixes if suffix in by_suffix), None)

    def row(self, content: mmap.mmap) -> tuple[int, int, int, int]:
        """The sample as an index row; fields that cannot be had are -1 or 0, and reported by others."""
        image, written = self.member(*SUFFIXES), self.member("cls")
        text = _label_text(written, content) if written else b""
        label = int(text) if text.isdigit() and int(text) <= np.iinfo(np.int32).max else NO_LABEL
        return (image.offset, image.size, label, SUFFIXES[image.suffix]) if image else (0, 0, label, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A file that belongs to no sample, though its name says that it should."""

    key: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCheck:
    """What samples are held against."""

    num_classes: int
    deep: bool
    """Decode every image."""

    def problems(self, sample: TarSample, content: mmap.mmap) -> Iterator[str]:
        """Everything that is wrong with a sample."""
        yield from _member_problems(sample)
        yield from self._label_problems(sample, content)
        image = sample.member(*SUFFIXES)
        if image is not None:
            yield from self._image_problems(image, content)

    def _label_problems(self, sample: TarSample, content: mmap.mmap) -> Iterator[str]:
        written = sample.member("cls")
        if written is None:
            if self.num_classes:
                yield "no .cls, while the index has a class map"
            return
        text = _label_text(written, content)
        if not text.isdigit():
            yield f".cls holds {text[:_MAX_LABEL_SHOWN]!r}, which is no class number"
        elif int(text) >= self.num_classes:
            yield f"label {int(text)} is outside the class map of {self.num_classes} classes"

    def _image_problems(self, image: Member, content: mmap.mmap) -> Iterator[str]:
        """By its header what kind and how large it is, and with `deep` whether it decodes."""
        head = content[image.offset : image.offset + min(image.size, _HEAD_BYTES)]
        kind = suffix_of(head)
        if kind is None:
            yield f"{image.suffix!r} file is no image ({image.size} bytes)"
        elif SUFFIXES[kind] != SUFFIXES[image.suffix]:
            yield f"{image.suffix!r} file is {kind!r} by content"
        else:
            encoded = content[image.offset : image.offset + image.size]
            try:
                header = read_header(encoded)
                if self.deep:
                    decode(encoded, channels=3, header=header)
            except DecodeError as error:
                yield f"image does not decode: {error.reason}"


def list_samples(members: Iterator[Member]) -> Iterator[TarSample | Stray]:
    """Members -> samples, grouped as the index groups them; and the files that it passes over by mistake."""
    group: list[Member] = []
    for member in members:
        stray = _stray(member)
        if stray is not None:
            yield stray
        if stray is not None or _is_hidden(member) or member.suffix not in MAX_BYTES:
            continue
        if group and member.key != group[0].key:
            yield TarSample(key=group[0].key, members=tuple(group))
            group = []
        group.append(member)
    if group:
        yield TarSample(key=group[0].key, members=tuple(group))


def _stray(member: Member) -> Stray | None:
    base, suffix = member.name.rpartition("/")[2], member.suffix
    if base.startswith(".") and suffix in MAX_BYTES:
        return Stray(key=member.key, problem=f"file {member.name!r} has no key before its first dot")
    if not _is_hidden(member) and "." in suffix and suffix.rpartition(".")[2] in MAX_BYTES:
        problem = f"the file name holds a dot before {suffix!r}: readers end the key at the first dot"
        return Stray(key=member.key, problem=problem)
    return None


def _is_hidden(member: Member) -> bool:
    return member.name.rpartition("/")[2].startswith(
        (".", "__")
    )  # macOS leftovers; WebDataset's own metadata


def _member_problems(sample: TarSample) -> Iterator[str]:
    suffixes = [member.suffix for member in sample.members]
    for suffix in sorted({suffix for suffix in suffixes if suffixes.count(suffix) > 1}):
        yield f"two files of suffix {suffix!r}"
    if sample.member(*SUFFIXES) is None:
        yield f"no image among {sorted(suffixes)}"
    if sample.key.startswith("/") or ".." in sample.key.split("/"):
        yield "the key would leave the folder that files are written to"


def _label_text(written: Member, content: mmap.mmap) -> bytes:
    return content[written.offset : written.offset + min(written.size, MAX_BYTES["cls"])].strip()
