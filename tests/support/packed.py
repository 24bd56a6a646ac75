"""What a build has written: its files, and its samples as webdataset itself reads them."""

from __future__ import annotations

from pathlib import Path


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples_of(folder: Path) -> list[dict[str, bytes]]:
    """What webdataset itself reads from the shards."""
    import webdataset  # brings torch along: seconds that most tests here need not wait

    urls = sorted(str(path) for path in folder.iterdir() if path.name.endswith((".tar", ".tar.gz")))
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return [
        {key: value for key, value in sample.items() if key not in ("__url__", "__local_path__")}
        for sample in samples
    ]
