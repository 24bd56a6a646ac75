"""Several splits of one source: which there are, and one class map for all of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.packing.corpus import Choice, choose, is_manifest, read_source
from data_pipeline.packing.manifest import read_manifest_splits
from data_pipeline.packing.record import Corpus

_ALL = "all"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def parse_splits(text: str) -> tuple[str, ...] | None:
    """What ``--splits`` names: some, or None for all there are."""
    if text == _ALL:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) < len(names):
        raise DataError(
            f"--splits {text!r}: names with commas between them, each once, such as train,val; or all"
        )
    return names


def read_splits(source: Path, names: tuple[str, ...] | None, choice: Choice) -> dict[str, Corpus]:
    """The chosen records of each split: a folder in `source` or a value of a manifest's column ``split``."""
    if is_manifest(source):
        corpora = read_manifest_splits(source, names, choice.manifest_options)
    else:
        corpora = _read_folders(source, names, choice)
    _refuse_odd_names(source, corpora)
    shared = _with_shared_classes(corpora)
    if choice.class_names is None:
        _refuse_empty_classes(source, shared)
    return {name: choose(_named(source, name), corpus, choice) for name, corpus in shared.items()}


def _refuse_odd_names(source: Path, names: Iterable[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise DataError(
                f"{source}: split {name!r}: letters, digits, '-' and '_' only (it names files); rename it"
            )


def _named(source: Path, split: str) -> Path:
    return source if is_manifest(source) else source / split


def _read_folders(source: Path, names: tuple[str, ...] | None, choice: Choice) -> dict[str, Corpus]:
    if not source.is_dir():
        raise DataError(
            f"{source}: --splits takes a folder that holds one folder per split, or a manifest with a column 'split'"
        )
    there = sorted(path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [name for name in names or () if name not in there]
    if unknown or not there:
        what = f"no folder {unknown[0]!r}" if unknown else "no folders"
        raise DataError(f"{source}: {what} for --splits; there are: {', '.join(there[:10]) or 'none'}")
    return {name: read_source(source / name, choice, is_split=True) for name in names or there}


def _with_shared_classes(corpora: dict[str, Corpus]) -> dict[str, Corpus]:
    """The same corpora under one class map: that of all, or the sorted names of all where they differ."""
    maps = {corpus.classes for corpus in corpora.values()}
    longest = max(maps, key=len)
    # Numbers, and splits that lack the last classes of others, keep the labels they have.
    if any(classes != longest[: len(classes)] for classes in maps):
        longest = tuple(sorted(set().union(*maps)))
    label_of = {name: label for label, name in enumerate(longest)}
    return {
        name: dataclasses.replace(
            corpus,
            classes=longest,
            records=[
                dataclasses.replace(record, label=label_of[corpus.classes[record.label]])
                if record.label >= 0
                else record
                for record in corpus.records
            ],
        )
        for name, corpus in corpora.items()
    }


def _refuse_empty_classes(source: Path, corpora: dict[str, Corpus]) -> None:
    folders = [corpus for corpus in corpora.values() if corpus.kind == "image folder"]
    if not folders:
        return
    used = {record.label for corpus in corpora.values() for record in corpus.records}
    empty = [name for label, name in enumerate(folders[0].classes) if label not in used]
    if empty:
        raise DataError(
            f"{source}: {len(empty)} class folder(s) without an image in any split: "
            f"{', '.join(map(repr, empty[:5]))}; remove them, or fix the class map: --classes FILE"
        )
