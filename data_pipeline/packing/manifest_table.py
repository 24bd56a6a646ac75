"""ManifestTable: the columns of a CSV or Parquet manifest, read and put in order."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data_pipeline.errors import DataError

EXTENSIONS = frozenset({".csv", ".parquet"})
_IMAGE_COLUMNS = ("path", "url")
_OWN_COLUMNS = ("label", "caption")
_SPLIT_COLUMN = "split"

Strings = list[str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestTable:
    """One value per row in each column that there is."""

    images: Strings
    """Paths or URLs."""
    labels: Strings | None
    captions: Strings | None
    splits: Strings | None
    fields: Strings | None
    """Further columns: the text of one JSON object per row."""
    fractions: bool = False
    """The labels are a column of numbers that are not whole ones."""


def read_table(
    source: Path, *, unlabelled: bool = False, columns: tuple[str, ...] | None = None, by_split: bool = False
) -> ManifestTable:
    """Reads a manifest; `columns` are the further ones to keep (None: all), `by_split` needs a column ``split``."""
    try:
        names = _column_names(source)
        image = next((name for name in _IMAGE_COLUMNS if name in names), None)
        own = [name for name in _OWN_COLUMNS if name in names and not (unlabelled and name == "label")]
        _check_columns(source, names, image, unlabelled=unlabelled, by_split=by_split)
        further = _further(source, names, image, columns, by_split=by_split)
        wanted = [str(image), *own, *further, *[_SPLIT_COLUMN] * (_SPLIT_COLUMN in names)]
        table = _read(source, names, list(dict.fromkeys(wanted)))
        labels = table.column("label") if "label" in own else None
        return ManifestTable(
            images=_strings(table.column(str(image))),
            labels=_strings(labels) if labels is not None else None,
            captions=_strings(table.column("caption")) if "caption" in own else None,
            splits=_strings(table.column(_SPLIT_COLUMN)) if _SPLIT_COLUMN in names else None,
            fields=_fields(source, table.select(further)) if further else None,
            fractions=labels is not None and _has_fractions(labels),
        )
    except (pa.ArrowException, OSError) as fault:  # damaged, or a column of lists where text is wanted
        raise DataError(f"{source}: not readable as {source.suffix[1:]}: {fault}") from fault


def _column_names(source: Path) -> list[str]:
    if source.suffix.lower() == ".parquet":
        names: list[str] = pyarrow.parquet.ParquetFile(source).schema_arrow.names
        return names
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{source}: not readable as csv: {fault}; save it as UTF-8") from fault


def _check_columns(
    source: Path, names: list[str], image: str | None, *, unlabelled: bool, by_split: bool
) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{source}: column {twice[0]!r} stands there {names.count(twice[0])} times; rename one"
        )
    if not names:
        raise DataError(f"{source}: not readable as {source.suffix[1:]}: it is empty")
    missing = [] if image else ["path"]
    missing += [] if unlabelled or "label" in names else ["label"]
    if missing:
        hint = "; without labels: --unlabelled" if missing == ["label"] else ""
        hint = " (or 'url')" + hint if "path" in missing else hint
        raise DataError(
            f"{source}: no column {' and '.join(map(repr, missing))} among {names}; rename yours{hint}"
        )
    if by_split and _SPLIT_COLUMN not in names:
        raise DataError(f"{source}: no column 'split' among {names}, which --splits needs; rename yours")


def _further(
    source: Path, names: list[str], image: str | None, columns: tuple[str, ...] | None, *, by_split: bool
) -> list[str]:
    """Names of the columns that become fields."""
    taken = {image, *_OWN_COLUMNS, *[_SPLIT_COLUMN] * by_split}
    if columns is None:
        return [name for name in names if name not in taken]
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise DataError(f"{source}: --columns names {unknown[0]!r}, and there are {names}")
    return list(columns)


def _read(source: Path, names: list[str], wanted: list[str]) -> pa.Table:
    if source.suffix.lower() == ".parquet":
        return pyarrow.parquet.ParquetFile(source).read(columns=wanted)
    # Text stays text: 007 is no number here.
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        include_columns=wanted,
        strings_can_be_null=True,
        null_values=[""],
    )
    # A caption may hold line breaks inside its quotes.
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(source, convert_options=options, parse_options=parsing)


def _strings(column: pa.ChunkedArray) -> Strings:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values: Strings = column.cast(pa.string()).to_pylist()
    return values


def _has_fractions(column: pa.ChunkedArray) -> bool:
    return pa.types.is_floating(column.type) and any(
        value is not None and not float(value).is_integer() for value in column.to_pylist()
    )


def _fields(source: Path, table: pa.Table) -> Strings:
    for column in table.schema:
        if _holds_bytes(column.type):
            raise DataError(
                f"{source}: column {column.name!r} holds {column.type}, which no JSON text can: "
                "choose the columns to keep with --columns, or --columns '' for none"
            )
    return [_json(row) for row in table.to_pylist()]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))


def _json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_without_nan(row), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    """What JSON has no type for: times as ISO 8601, durations in seconds, decimals as text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise DataError(f"a value of type {type(value).__name__} fits no JSON text; choose with --columns")


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return value
