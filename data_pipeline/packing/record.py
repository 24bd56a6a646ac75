"""Record: one image waiting to be packed, as a span of a file or behind a URL, with its label and texts."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from data_pipeline.errors import DataError
from data_pipeline.scan import MAX_IMAGE_BYTES
from data_pipeline.storage.files import local_shard
from data_pipeline.storage.source import is_compressed

SUFFIXES: dict[str, str] = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Extensions of images that may be packed (case does not matter), and the suffix each gets in a shard."""

_ASSUMED_REMOTE_BYTES = 100_000


class MissingImage(DataError):
    """An image that is not where its source says; left out where that is allowed."""


class BrokenImage(DataError):
    """An image that does not decode where it has to; left out where that is allowed."""


@dataclass(frozen=True, slots=True)
class Span:
    """`size` bytes of a file from `offset` on; in a ``.gz`` file both count uncompressed bytes."""

    path: str
    offset: int
    size: int
    whole: bool = False
    """The span is the whole file, so a file that grew is noticed as well as one that shrank."""

    def read(self) -> bytes:
        """The bytes; DataError when the file is no longer what it was when it was listed."""
        try:
            content = self._read(self.size + self.whole)
        except FileNotFoundError:
            raise DataError(f"{self.path}: gone since it was listed; run the build again") from None
        except PermissionError:
            raise DataError(
                f"{self.path}: not readable; give yourself read permission and run again"
            ) from None
        if len(content) != self.size:
            raise DataError(
                f"{self.path}: {self.size} bytes expected at offset {self.offset}, {len(content)} found: the file "
                "changed since it was listed; leave the source alone and run the build again"
            )
        return content

    def _read(self, size: int) -> bytes:
        if self.path.endswith(".gz") and not is_compressed(self.path):
            return gunzip(self.path)[self.offset : self.offset + size]
        # NOTE: asked for at each read, since the cache may have removed the copy of a compressed tar meanwhile.
        file = local_shard(self.path) if is_compressed(self.path) else self.path
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.pread(descriptor, size, self.offset)
            # One call brings at most 2 GiB, and on some network file systems less than it could.
            while missing := size - len(content):
                more = os.pread(descriptor, missing, self.offset + len(content))
                if not more:
                    break
                content += more
            return content
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Remote:
    """A whole file behind a URL."""

    url: str
    patience_s: float | None = None
    """How long a server that fails is asked again; None is the usual time."""
    size: int = _ASSUMED_REMOTE_BYTES
    """What it counts as when shards are cut: its real size is not known before it is fetched."""

    def read(self) -> bytes:
        """The bytes; MissingImage when they cannot be had, or are no image (a page that says so, for example)."""
        # Imported here: file systems take half a second to load, and most sources are local.
        from data_pipeline.storage.remote import read_all
        from data_pipeline.storage.retry import PATIENCE_S

        try:
            content = read_all(self.url, MAX_IMAGE_BYTES, patience_s=self.patience_s or PATIENCE_S)
        except DataError as fault:
            raise MissingImage(str(fault)) from fault
        if suffix_of(content) is None:
            raise MissingImage(
                f"{self.url!r} answers with no JPEG, PNG or WebP ({len(content)} bytes, the first {content[:16]!r}); "
                "check the address"
            )
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What becomes one sample of a shard."""

    name: str
    """What its owner calls it: a path relative to the source, or a row of it."""
    image: Span | Remote
    suffix: str
    """``jpg``, ``png`` or ``webp``."""
    label: int = -1
    """Position in the class map, or the source's own integer; -1 is no label."""
    caption: str | None = None
    fields: str | None = None
    """Further columns of a manifest, as the text of a JSON object."""
    shape: tuple[int, int] | None = None
    """Height and width of raw grey pixels that become a PNG; None when the bytes are an image file already."""
    key: str | None = None
    """Key that the sample had already (in existing tars); None lets the packer number it."""
    extras: tuple[tuple[str, Span], ...] = ()
    """Further members to carry along by suffix (``txt`` or ``json`` of existing tars)."""

    @property
    def has_caption(self) -> bool:
        """Whether there will be text in its ``.txt``."""
        return bool(self.caption) or any(name == "txt" and span.size for name, span in self.extras)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out because it is missing or broken."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Everything that one source has to pack, in the source's order."""

    kind: str
    """What it was read as, for people: ``image folder``, ``manifest`` ..."""
    records: list[Record]
    classes: tuple[str, ...]
    """Name of each label; empty when nothing is labelled."""
    stamps: tuple[str, ...]
    """What must stay equal for an interrupted build to go on: names, sizes and times or digests of the input."""
    num_ignored: int = 0
    """Files that are no images of a known kind."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Members of existing tars that are not carried along, by suffix."""
    skipped: tuple[Skipped, ...] = ()
    """Images that the source names and that are not there, where that is allowed."""


def suffix_of(content: bytes) -> str | None:
    """The kind of image that bytes are by their first ones; None for no kind that is packed."""
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return None


@lru_cache(maxsize=2)
def gunzip(path: str) -> bytes:
    """A gzip file's content, the last two kept: rows of one file are read one after another."""
    try:
        with gzip.open(path, "rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise DataError(f"{path}: not a whole gzip file ({fault}); fetch or copy it again") from fault
