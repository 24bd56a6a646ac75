"""What a location is: a packaged folder, a file, a compressed file, a URL; and which ones are refused."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.errors import DataError

_PACKAGED = "mirada://"
_GZIPPED = (".tar.gz", ".tgz")
_VARIABLE = re.compile(r"\$(\w|\{)")


def resolve(location: str) -> str:
    """The folder or URL a location stands for; ``mirada://X`` is the data that ships inside this package."""
    if not location.startswith(_PACKAGED):
        return location
    root = Path(__file__).resolve().parents[1]
    folder = (root / location.removeprefix(_PACKAGED)).resolve()
    if not folder.is_relative_to(root):
        raise DataError(
            f"{location!r} leaves the package; packaged data is named like 'mirada://sample/train'"
        )
    return str(folder)


def is_remote(location: str) -> bool:
    """Whether a location has to be fetched before its bytes can be read at an offset."""
    return "://" in location and not location.startswith("file://")


def is_compressed(location: str) -> bool:
    """Whether a shard has to be unpacked before its bytes can be read at an offset."""
    return location.endswith(_GZIPPED)


def local_path(url: str) -> Path:
    """The file a location that is not remote stands for; DataError if it is not there."""
    path = Path(url.removeprefix("file://"))
    if not path.is_file():
        raise DataError(
            f"shard {str(path)!r} does not exist; restore it, or run: mirada data index {path.parent!s}"
        )
    return path


def check_size(url: str, num_bytes: int, *, name: str) -> None:
    """Raises DataError when a local shard is missing or has not the size its index says; remote ones come whole."""
    if is_remote(url):
        return
    path = Path(url.removeprefix("file://"))
    size = path.stat().st_size if path.is_file() else None
    if size != num_bytes:
        found = f"has {size} bytes" if size is not None else f"is not at {str(path)!r}"
        raise DataError(
            f"shard {name!r} {found}, and its index says {num_bytes} bytes: copy it again from where it came, or, if "
            "the shard is right, index it anew (mirada data index); mirada data verify finds what else is wrong"
        )


def refuse_commands(url: str) -> None:
    """Raises DataError on URLs that would run a program, chain file systems, or read the environment."""
    if url.lower().startswith("pipe:") or "::" in url:
        raise DataError(
            f"{url!r} is not allowed: a shard is a file or URL, never a command or a chain of them"
        )
    if is_remote(url) and _VARIABLE.search(url):
        raise DataError(f"{url!r} is not allowed: environment variables are not put into URLs; write it out")
