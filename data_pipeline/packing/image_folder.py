"""Image folders, one class per directory, as records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.packing.record import SUFFIXES, Corpus, Record, Span

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})


def read_image_folder(
    source: Path,
    *,
    unlabelled: bool = False,
    class_names: tuple[str, ...] | None = None,
    is_split: bool = False,
) -> Corpus:
    """Records of every image below `source`, sorted by path; the label is the first folder's place in their order.

    Folders that are not among `class_names` may be empty; images outside of every folder are then left out. Those of
    one of several splits may be empty too: another split may have the class.
    """
    found = sorted(_files(source, ""))
    images = [(path, status) for path, status in found if Path(path).suffix.lower() in SUFFIXES]
    if not images:
        raise DataError(
            f"{source}: no images below it ({len(found)} other files): "
            f"{', '.join(SUFFIXES)} are packed; convert other formats first"
        )
    classes = (
        ()
        if unlabelled
        else _class_names(source, [path for path, _ in images], class_names, is_split=is_split)
    )
    label_of = {name: label for label, name in enumerate(classes)}
    records = [
        Record(
            name=path,
            image=Span(str(source / path), 0, status.st_size, whole=True),
            suffix=SUFFIXES[Path(path).suffix.lower()],
            label=label_of.get(path.split("/", 1)[0], -1),
        )
        for path, status in images
    ]
    stamps = tuple(f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in images)
    num_ignored = len(found) - len(images)
    return Corpus(
        kind="image folder", records=records, classes=classes, stamps=stamps, num_ignored=num_ignored
    )


def _class_names(
    source: Path, paths: list[str], wanted: tuple[str, ...] | None, *, is_split: bool
) -> tuple[str, ...]:
    """Sorted names of the folders directly below `source`; every one must hold an image, every image a folder."""
    folders = {
        entry.name for entry in os.scandir(source) if entry.is_dir() and not entry.name.startswith(".")
    }
    outside = [path for path in paths if "/" not in path]
    if not folders:
        raise DataError(
            f"{source}: zero classes: its {len(outside)} images lie in no folder; put each class in a folder of its "
            "own, or pack them without labels: --unlabelled"
        )
    if wanted is not None:
        return tuple(sorted(folders))
    if folders <= _SPLITS and not is_split:
        one = sorted(folders)[0]
        raise DataError(
            f"{source}: {sorted(folders)} look like splits, not classes: pack each apart with --splits all (or some: "
            f"--splits {','.join(sorted(folders))}), or one of them: {source / one}"
        )
    if outside:
        raise DataError(
            f"{source}: {len(outside)} images beside the class folders (the first: {outside[0]!r}) have no class; "
            "move them into one, or pack everything without labels: --unlabelled"
        )
    empty = sorted(folders - {path.split("/", 1)[0] for path in paths})
    if empty and not is_split:
        raise DataError(
            f"{source}: {len(empty)} class folder(s) without an image: {', '.join(map(repr, empty[:5]))}; "
            "remove them, or fix the class map: --classes FILE"
        )
    return tuple(sorted(folders))


def _files(
    folder: Path, prefix: str, above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below, links followed, hidden ones left out; a link back to a folder above it ends the walk there."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/", above | {real})
            elif entry.is_file():
                yield prefix + entry.name, entry.stat()
