"""Makes the forms of the corpus that some loaders need; run by the peers' Python.

python -m benchmarks.loader_peers.prepare CORPORA       # what is there already is kept
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.loader_peers.peers import PEERS
from benchmarks.loader_peers.task import shards

_DONE = ".converted"


def main(arguments: list[str]) -> int:
    """Converts for all peers, each in a process of its own, or for the one that is named."""
    corpora = Path(arguments[0])
    if len(arguments) > 1:
        _convert(corpora, arguments[1])
        return 0
    for peer in PEERS.values():
        place = peer.place(corpora, "jpeg")
        if peer.converted and not (place / _DONE).exists():
            print(f"converting for {peer.title}", flush=True)
            program = [sys.executable, "-m", "benchmarks.loader_peers.prepare", str(corpora), peer.name]
            subprocess.run(program, check=True)
            (place / _DONE).touch()
    return 0


def _convert(corpora: Path, name: str) -> None:
    module, place = (
        importlib.import_module(f"benchmarks.loader_peers.{name}"),
        PEERS[name].place(corpora, "jpeg"),
    )
    if hasattr(module, "convert_shards"):
        module.convert_shards(corpora / "jpeg", place)
    else:
        module.convert(_pictures(corpora), place)


def _pictures(corpora: Path) -> Path:
    folder = corpora / "converted" / "pictures"
    if not (folder / _DONE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path in shards(corpora / "jpeg"):
            with tarfile.open(path) as shard:
                members = [member for member in shard if member.name.endswith(".jpg")]
                shard.extractall(folder, members, filter="data")
        (folder / _DONE).touch()
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
