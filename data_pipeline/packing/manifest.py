"""CSV and Parquet manifests (columns path, label and optionally caption) as records."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data_pipeline.errors import DataError
from data_pipeline.packing.record import SUFFIXES, Corpus, Record, Span

EXTENSIONS = frozenset({".csv", ".parquet"})
_INTEGER = re.compile(r"0|[1-9][0-9]*")
_MAX_CLASSES = 1_000_000
_NUM_SHOWN = 5


def read_manifest(source: Path, *, unlabelled: bool = False) -> Corpus:
    """Records of a manifest in its row order; paths count from the manifest's folder, integer labels stay."""
    columns = _columns(source, unlabelled=unlabelled)
    paths = _strings(columns["path"])
    if not paths:
        raise DataError(f"{source}: no rows, so nothing to pack")
    labels, classes = _labels(source, None if unlabelled else _strings(columns["label"]))
    captions = _strings(columns["caption"]) if "caption" in columns else [None] * len(paths)
    records, stamps = [], [f"{source.name} {source.stat().st_mtime_ns}"]
    mistakes: list[str] = []
    for row, path in enumerate(paths):
        image = _image(source, row, path, mistakes)
        if image is not None:
            span, suffix, stamp = image
            label = labels[row] if labels else -1
            records.append(
                Record(name=str(path), image=span, suffix=suffix, label=label, caption=captions[row])
            )
            stamps.append(stamp)
    if mistakes:
        shown = "".join(f"\n  {mistake}" for mistake in mistakes[:_NUM_SHOWN])
        raise DataError(
            f"{source}: {len(mistakes)} of {len(paths)} rows cannot be packed; correct them:{shown}"
        )
    return Corpus(kind="manifest", records=records, classes=classes, stamps=tuple(stamps))


def _columns(source: Path, *, unlabelled: bool) -> dict[str, pa.ChunkedArray]:
    try:
        table = _table(source)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as fault:
        raise DataError(f"{source}: not readable as {source.suffix[1:]}: {fault}") from fault
    needed = ["path"] if unlabelled else ["path", "label"]
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        hint = "; without labels: --unlabelled" if missing == ["label"] else ""
        raise DataError(
            f"{source}: no column {' and '.join(map(repr, missing))} among {table.column_names}; rename yours{hint}"
        )
    return {name: table.column(name) for name in ("path", "label", "caption") if name in table.column_names}


def _table(source: Path) -> pa.Table:
    if source.suffix.lower() == ".parquet":
        file = pyarrow.parquet.ParquetFile(source)
        wanted = [name for name in file.schema_arrow.names if name in ("path", "label", "caption")]
        # A table without columns still says which names the file has.
        return file.read(columns=wanted) if "path" in wanted else file.schema_arrow.empty_table()
    as_text = {name: pa.string() for name in ("path", "label", "caption")}
    options = pyarrow.csv.ConvertOptions(column_types=as_text, strings_can_be_null=True, null_values=[""])
    # A caption may hold line breaks inside its quotes.
    return pyarrow.csv.read_csv(
        source, convert_options=options, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
    )


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values: list[str | None] = column.cast(pa.string()).to_pylist()
    return values


def _labels(source: Path, values: Sequence[str | None] | None) -> tuple[list[int] | None, tuple[str, ...]]:
    """Labels as integers, and the class map: integers stay, names are numbered in sorted order."""
    if values is None:
        return None, ()
    empty = [row for row, value in enumerate(values) if value is None or not value.strip()]
    if empty:
        raise DataError(
            f"{source}: {len(empty)} of {len(values)} rows have no label (the first: row {empty[0] + 1}); label them, "
            "leave them out, or pack everything without labels: --unlabelled"
        )
    names = [str(value).strip() for value in values]
    if all(map(_INTEGER.fullmatch, names)):
        labels = [int(name) for name in names]
        if max(labels) >= _MAX_CLASSES:
            raise DataError(
                f"{source}: label {max(labels)} is above {_MAX_CLASSES - 1}; is the column a class?"
            )
        return labels, tuple(str(label) for label in range(max(labels) + 1))
    classes = tuple(sorted(set(names)))
    label_of = {name: label for label, name in enumerate(classes)}
    return [label_of[name] for name in names], classes


def _image(source: Path, row: int, path: str | None, mistakes: list[str]) -> tuple[Span, str, str] | None:
    """Where a row's image lies, its suffix, and what identifies its state; None after noting a mistake."""
    suffix = SUFFIXES.get(os.path.splitext(path)[1].lower()) if path else None
    if path is None or suffix is None:
        mistakes.append(f"row {row + 1}: {path!r} is not the path of a {', '.join(SUFFIXES)} file")
        return None
    where = source.parent / path
    try:
        status = where.stat()
    except OSError as fault:
        mistakes.append(f"row {row + 1}: {path!r}: {fault.strerror} (looked for {str(where)!r})")
        return None
    return (
        Span(str(where), 0, status.st_size, whole=True),
        suffix,
        f"{path} {status.st_size} {status.st_mtime_ns}",
    )
