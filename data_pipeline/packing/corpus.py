"""What to pack: the kind of a source recognised, its records chosen and ordered."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.packing.idx import is_idx, read_idx
from data_pipeline.packing.image_folder import read_image_folder
from data_pipeline.packing.manifest import ManifestOptions, read_manifest
from data_pipeline.packing.manifest_table import EXTENSIONS
from data_pipeline.packing.record import Corpus, Record
from data_pipeline.packing.tars import holds_tars, is_tar, read_tars


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which records of a source are packed, in what order."""

    unlabelled: bool = False
    """Labels are neither needed nor written."""
    class_names: tuple[str, ...] | None = None
    """Classes to pack, in the order of their labels; None is every class of the source, sorted."""
    label_names: tuple[str, ...] | None = None
    """Names for the labels 0, 1, 2 ... of a source that has only numbers."""
    per_class: int | None = None
    """At most so many records of each class: the first of them in the source's order."""
    limit: int | None = None
    """At most so many records: the first of them in the order they would be packed."""
    shuffle: bool | None = None
    """Mix the records once and for all; None does so for image folders only, which are sorted by class."""
    seed: int = 0
    """Of that mixing."""
    columns: tuple[str, ...] | None = None
    """Further columns of a manifest to keep; None is all."""
    together: bool = False
    """Rows of a manifest are packed as one split, whatever its column ``split`` says."""
    skip_missing: bool = False
    """Leave out images that a manifest names and that are not there."""

    @property
    def manifest_options(self) -> ManifestOptions:
        """What of it concerns the reading of a manifest."""
        return ManifestOptions(
            unlabelled=self.unlabelled,
            labels_are_names=self.class_names is not None,
            columns=self.columns,
            skip_missing=self.skip_missing,
        )


def read_corpus(source: Path, choice: Choice) -> Corpus:
    """The chosen records of a source, in the order in which they are to be packed."""
    return choose(source, read_source(source, choice), choice)


def read_source(source: Path, choice: Choice, *, is_split: bool = False) -> Corpus:
    """All records of a source, or of a folder that is one of its splits, whatever kind it is of."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if choice.columns is not None and not is_manifest(source):
        raise DataError(
            f"{source}: --columns chooses columns of a .csv or .parquet manifest, and this is none"
        )
    if source.is_dir() and not holds_tars(source):
        return read_image_folder(
            source, unlabelled=choice.unlabelled, class_names=choice.class_names, is_split=is_split
        )
    if is_manifest(source):
        return read_manifest(source, choice.manifest_options, together=choice.together)
    if source.is_dir() or is_tar(source):
        return read_tars(source, unlabelled=choice.unlabelled)
    if is_idx(source):
        return read_idx(source)
    raise DataError(
        f"{source}: not a source that can be packed; give a folder of images (one folder per class), a .csv or "
        ".parquet manifest, an ...-images-idx3-ubyte[.gz] file, or .tar files or their folder"
    )


def choose(source: Path, corpus: Corpus, choice: Choice) -> Corpus:
    """The records of a source that a choice wants, in its order and with its labels."""
    records, classes = corpus.records, corpus.classes
    if choice.label_names is not None:
        classes = _named(source, classes, choice.label_names)
    if choice.class_names is not None:
        records, classes = _keep_classes(records, classes, choice.class_names), choice.class_names
    if choice.per_class is not None:
        records = _first_of_each(records, choice.per_class)
    if choice.shuffle or (choice.shuffle is None and corpus.kind == "image folder"):
        records = sorted(records, key=lambda record: _place(choice.seed, record.name))
    if choice.limit is not None:
        records = records[: choice.limit]
    if not records:
        missing = f"; {len(corpus.skipped)} images are missing" if corpus.skipped else ""
        raise DataError(f"{source}: nothing left to pack after the choice of classes and limits{missing}")
    return dataclasses.replace(corpus, records=records, classes=classes)


def is_manifest(source: Path) -> bool:
    """Whether a file's name says that it lists images."""
    return source.is_file() and source.suffix.lower() in EXTENSIONS


def read_names(file: Path, *, option: str) -> tuple[str, ...]:
    """One class per line; a line's place is its label."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; {option} takes a text file with one class name per line")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as fault:
        raise DataError(f"{file}: not readable as text: {fault}; save it as UTF-8") from fault
    names = [line.strip() for line in lines if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        what = f"names {twice[0]!r} twice" if twice else "is empty"
        raise DataError(f"{file} {what}; {option} takes a text file with one class name per line, each once")
    return tuple(names)


def _named(source: Path, classes: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    numbered = tuple(str(label) for label in range(len(classes)))
    if classes != numbered:
        raise DataError(
            f"{source}: its classes have names already, such as {classes[0]!r}; leave out --class-names"
        )
    if len(names) < len(classes):
        raise DataError(f"{source}: {len(names)} names for the labels 0 to {len(classes) - 1}; name each one")
    return names


def _keep_classes(
    records: list[Record], classes: tuple[str, ...], class_names: tuple[str, ...]
) -> list[Record]:
    """Records of these classes, with the labels these names have; DataError for a name that no record has."""
    new_label = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in class_names if name not in classes]
    if unknown:
        raise DataError(
            f"{len(unknown)} name(s) of --classes are no class of the source: {', '.join(map(repr, unknown[:5]))}; "
            f"it has {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}"
        )
    relabelled = {label: new_label[name] for label, name in enumerate(classes) if name in new_label}
    return [
        dataclasses.replace(record, label=relabelled[record.label])
        for record in records
        if record.label in relabelled
    ]


def _first_of_each(records: list[Record], per_class: int) -> list[Record]:
    seen: Counter[int] = Counter()
    kept = []
    for record in records:
        seen[record.label] += 1
        if seen[record.label] <= per_class:
            kept.append(record)
    return kept


def _place(seed: int, name: str) -> bytes:
    """Sort key of a mixed order: a digest stays the same on every machine and with every library version."""
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
