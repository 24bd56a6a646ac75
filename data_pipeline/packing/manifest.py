"""CSV and Parquet manifests (path or url, label, caption, split, further columns) as records."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from urllib.parse import urlsplit

import fsspec

from data_pipeline.class_numbers import numbered_classes
from data_pipeline.errors import DataError
from data_pipeline.packing.manifest_table import ManifestTable, read_table
from data_pipeline.packing.record import SUFFIXES, Corpus, MissingImage, Record, Remote, Skipped, Span
from data_pipeline.storage.retry import missing_package
from data_pipeline.storage.source import is_remote, refuse_commands

_INTEGER = re.compile(r"0|[1-9][0-9]*")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_NUM_SHOWN = 5
_PATIENCE_WHERE_SKIPPED_S = 60.0
"""Servers that fail are given up sooner where that costs one image and not the build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestOptions:
    """How a manifest is read."""

    unlabelled: bool = False
    labels_are_names: bool = False
    """Take labels that are partly numbers and partly text as names."""
    columns: tuple[str, ...] | None = None
    """Further columns to keep as fields; None is all."""
    skip_missing: bool = False
    """Leave out images that are not there."""


def read_manifest(source: Path, options: ManifestOptions | None = None, *, together: bool = False) -> Corpus:
    """Records of a manifest in its row order; paths count from the manifest's folder, integer labels stay.

    Rows of several splits are not mixed unless `together` says so.
    """
    options = options or ManifestOptions()
    table = read_table(source, unlabelled=options.unlabelled, columns=options.columns)
    splits = sorted({split or "" for split in table.splits or ()})
    if len(splits) > 1 and not together:
        raise DataError(
            f"{source}: its column 'split' has {', '.join(map(repr, splits[:5]))}: pack each apart with --splits all "
            "(or some: --splits train,val), or all rows as one with --splits none"
        )
    return _corpora(source, table, {"": list(range(len(table.images)))}, options)[""]


def read_manifest_splits(
    source: Path, names: Sequence[str] | None, options: ManifestOptions
) -> dict[str, Corpus]:
    """A corpus for each of these values of the column ``split`` (None: for every one), with one class map."""
    table = read_table(source, unlabelled=options.unlabelled, columns=options.columns, by_split=True)
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(table.splits or ()):
        rows.setdefault(split or "", []).append(row)
    if "" in rows:
        raise DataError(f"{source}: {len(rows[''])} rows have no split (the first: row {rows[''][0] + 1})")
    chosen = sorted(rows) if names is None else names
    unknown = [name for name in chosen if name not in rows]
    if unknown:
        raise DataError(f"{source}: no row has the split {unknown[0]!r}; there are {', '.join(sorted(rows))}")
    return _corpora(source, table, {name: rows[name] for name in chosen}, options)


def _corpora(
    source: Path, table: ManifestTable, rows_of: dict[str, list[int]], options: ManifestOptions
) -> dict[str, Corpus]:
    """A corpus for each of these groups of rows; every wrong row is found before the first is complained about."""
    every_row = sorted(row for rows in rows_of.values() for row in rows)
    if not every_row:
        raise DataError(f"{source}: no rows, so nothing to pack")
    labels, classes = _labels(source, table, every_row, options)
    finder = _ImageFinder(source, options)
    corpora = {}
    for name, rows in rows_of.items():
        records, skipped = [], []
        stamps = [f"{source.name} {source.stat().st_mtime_ns}"]
        for row in rows:
            found = finder.find(row, table.images[row])
            if isinstance(found, Skipped):
                skipped.append(found)
            elif found is not None:
                records.append(_record(table, row, labels.get(row, -1), found))
                stamps.append(found.stamp)
        corpora[name] = Corpus(
            kind="manifest", records=records, classes=classes, stamps=tuple(stamps), skipped=tuple(skipped)
        )
    finder.complain(len(every_row))
    return corpora


def _record(table: ManifestTable, row: int, label: int, found: _Found) -> Record:
    return Record(
        name=str(table.images[row]),
        image=found.image,
        suffix=found.suffix,
        label=label,
        caption=table.captions[row] if table.captions else None,
        fields=table.fields[row] if table.fields else None,
    )


def _labels(
    source: Path, table: ManifestTable, rows: list[int], options: ManifestOptions
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Labels of these rows as integers, and the class map: integers stay, names are numbered in sorted order."""
    if table.labels is None:
        return {}, ()
    values = [table.labels[row] for row in rows]
    empty = [row for row, value in zip(rows, values, strict=True) if value is None or not value.strip()]
    if empty:
        raise DataError(
            f"{source}: {len(empty)} of {len(values)} rows have no label (the first: row {empty[0] + 1}); label them, "
            "leave them out, or pack everything without labels: --unlabelled"
        )
    if table.fractions:
        raise DataError(
            f"{source}: the column 'label' holds fractions; a label is a class, by name or number"
        )
    names = [str(value).strip() for value in values]
    if all(map(_INTEGER.fullmatch, names)):
        labels = [int(name) for name in names]
        return dict(zip(rows, labels, strict=True)), numbered_classes(max(labels), where=str(source))
    if not options.labels_are_names:
        _refuse_mixed_kinds(source, rows, names)
    classes = tuple(sorted(set(names)))
    label_of = {name: label for label, name in enumerate(classes)}
    return {row: label_of[name] for row, name in zip(rows, names, strict=True)}, classes


def _refuse_mixed_kinds(source: Path, rows: list[int], names: list[str]) -> None:
    numbers = [place for place, name in enumerate(names) if _NUMBER.fullmatch(name)]
    if numbers and len(numbers) < len(names):
        texts = sorted(set(range(len(names))) - set(numbers))
        raise DataError(
            f"{source}: labels are partly numbers (row {rows[numbers[0]] + 1}: {names[numbers[0]]!r}) and partly names "
            f"(row {rows[texts[0]] + 1}: {names[texts[0]]!r}): use one kind; if the numbers are names too, list all "
            "names in a file: --classes FILE"
        )
    negative = next(
        (place for place, name in enumerate(names) if name.startswith("-") and place in numbers), None
    )
    if negative is not None:
        raise DataError(
            f"{source}: row {rows[negative] + 1} has the label {names[negative]}: classes are numbered from 0 on; "
            "leave such rows out, or pack everything without labels: --unlabelled"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """An image of a manifest."""

    image: Span | Remote
    suffix: str
    stamp: str
    """Identifies its state, as far as that can be seen without reading it."""


class _ImageFinder:
    """Finds the images that rows name, and keeps the mistakes it meets."""

    def __init__(self, source: Path, options: ManifestOptions) -> None:
        self._source = source
        self._skip_missing = options.skip_missing
        self._mistakes: list[str] = []
        self._num_missing = 0
        self._scheme_faults: dict[str, str | None] = {}

    def find(self, row: int, named: str | None) -> _Found | Skipped | None:
        """The image; Skipped if it is not there and that is allowed; None after noting a mistake."""
        try:
            return self._find_remote(named) if named and is_remote(named) else self._find_local(named)
        except MissingImage as fault:
            if self._skip_missing:
                return Skipped(str(named), str(fault))
            self._mistakes.append(f"row {row + 1}: {named!r}: {fault}")
            self._num_missing += 1
        except DataError as fault:
            self._mistakes.append(f"row {row + 1}: {fault}")
        return None

    def complain(self, num_rows: int) -> None:
        """Raises DataError if there were mistakes."""
        if self._mistakes:
            shown = "".join(f"\n  {mistake}" for mistake in self._mistakes[:_NUM_SHOWN])
            hint = ", or leave out those that are missing: --skip-missing" if self._num_missing else ""
            raise DataError(
                f"{self._source}: {len(self._mistakes)} of {num_rows} rows cannot be packed; correct them{hint}:{shown}"
            )

    def _find_local(self, named: str | None) -> _Found:
        suffix = SUFFIXES.get(os.path.splitext(named)[1].lower()) if named else None
        if named is None or suffix is None:
            raise DataError(f"{named!r} is not the path of a {', '.join(SUFFIXES)} file")
        where = self._source.parent / named.removeprefix("file://")
        try:
            status = where.stat()
        except OSError as fault:
            raise MissingImage(f"{fault.strerror} (looked for {str(where)!r})") from fault
        if not S_ISREG(status.st_mode):
            raise DataError(f"{str(where)!r} is a folder or device, and no image")
        image = Span(str(where), 0, status.st_size, whole=True)
        return _Found(image=image, suffix=suffix, stamp=f"{named} {status.st_size} {status.st_mtime_ns}")

    def _find_remote(self, url: str) -> _Found:
        refuse_commands(url)
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise DataError(f"{url!r} is no URL: {error}") from error
        if parts.scheme not in self._scheme_faults:
            self._scheme_faults[parts.scheme] = _scheme_fault(parts.scheme)
        if (fault := self._scheme_faults[parts.scheme]) is not None:
            raise DataError(f"{url!r}: {fault}")
        # Content decides once it is there; many addresses do not end in a suffix.
        suffix = SUFFIXES.get(os.path.splitext(parts.path)[1].lower(), "jpg")
        patience_s = _PATIENCE_WHERE_SKIPPED_S if self._skip_missing else None
        return _Found(image=Remote(url, patience_s), suffix=suffix, stamp=url)


def _scheme_fault(scheme: str) -> str | None:
    """Why addresses of this scheme cannot be read here; None if they can."""
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        return f"{scheme} {missing_package(error)}"
    except ValueError as error:
        return str(error)
    return None
