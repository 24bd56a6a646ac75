"""What a run builds on, other runs have made: releases, and a teacher's answers. Looked for on the login node."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from configs.teacher import ANSWERS_FILE
from configs.training import WEIGHT_FILES

_RELEASE = ("config.json", "model.safetensors")


def release_mistakes(releases: Mapping[str, str], promised: Collection[Path]) -> Iterator[str]:
    """References, by the name of what gives them, to releases that neither exist nor are `promised`."""
    expected = {path.resolve() for path in promised}
    for role, reference in releases.items():
        folder = release_folder(reference)
        if folder is not None and folder.name.endswith(WEIGHT_FILES):
            if not folder.is_file():
                yield f"{role}: no file {reference!r}"
            continue
        if folder is None or {folder.resolve(), folder.resolve().parent} & expected:
            continue
        if not any(
            all((place / name).is_file() for name in _RELEASE) for place in (folder, folder / "release")
        ):
            yield (
                f"{role}: {reference!r} is no release and no run folder with one ({' and '.join(_RELEASE)}); a run "
                "writes its release when it has finished"
            )


def release_folder(reference: str) -> Path | None:
    """The folder that a reference to a release names; None for a name of timm or of a hub."""
    if reference.startswith("hf-hub:"):
        return None
    folder = Path(reference.removeprefix("local-dir:")).expanduser()
    is_path = "/" in reference or reference.startswith("local-dir:") or reference.endswith(WEIGHT_FILES)
    is_name = not is_path and not folder.is_dir()
    return None if is_name else folder


def cache_mistakes(caches: Mapping[str, str], promised: Collection[Path]) -> Iterator[str]:
    """Folders of a teacher's answers, by the setting that names them, that are neither finished nor `promised`.

    Whether they are of this teacher, these images and crops, the run finds out before its first step.
    """
    expected = {path.resolve() for path in promised}
    for key, location in caches.items():
        folder = Path(location)
        if folder.resolve() in expected:
            continue
        try:
            is_finished = json.loads((folder / ANSWERS_FILE).read_text())["taught"] is not None
        except (OSError, ValueError, KeyError, TypeError):
            yield f"{key}: {location!r} holds no answers of a teacher; mirada teach writes them"
            continue
        if not is_finished:
            yield f"{key}: the answers in {location!r} are not all there yet; mirada teach goes on with them"
