"""Where the ranks of a job meet: an address and a free port on the first node, agreed by all through a file.

rank 0: address of the node + a port that is free there -> RUN/launch/attempts/17.0/rendezvous.json -> every other rank
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.base import ConfigError

FIRST_NODE = "MIRADA_FIRST_NODE"
"""Variable with the address of the job's first node, set by the batch script."""
_FILE = "rendezvous.json"
_LOWEST_PORT, _HIGHEST_PORT = 20_000, 32_767
"""Below the ports that systems hand out by themselves (Linux: from 32,768 on): nothing takes one by accident."""
_TIMEOUT_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
"""Between two looks: each twice the one before, for thousands of ranks may look, and one file server answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """What torch.distributed is told."""

    address: str
    port: int


def meet(folder: Path, environ: Mapping[str, str], *, rank: int, start: str) -> Meeting:
    """The same on every rank; `folder` is the attempt's, `start` tells this step from every other.

    MASTER_ADDR and MASTER_PORT win where the user has set them. ConfigError when rank 0 says nothing.
    """
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if address is not None and port is not None:
        return Meeting(address=address, port=int(port))
    path = folder / _FILE
    if rank > 0:
        return _wait_for(path, start)
    meeting = Meeting(
        address=address or environ.get(FIRST_NODE) or socket.gethostname(),
        port=free_port() if port is None else int(port),
    )
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({"start": start, **asdict(meeting)}) + "\n")
    aside.replace(path)
    return meeting


def free_port() -> int:
    """A port that nobody listens on here, out of a range from which systems do not hand out any."""
    candidates = list(range(_LOWEST_PORT, _HIGHEST_PORT + 1))
    random.shuffle(candidates)
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise ConfigError(
        f"no port from {_LOWEST_PORT} to {_HIGHEST_PORT} is free on {socket.gethostname()}: set MASTER_PORT to one "
        "that is, in the cluster file's 'environment'"
    )


def _wait_for(path: Path, start: str) -> Meeting:
    deadline, pause_s = time.monotonic() + _TIMEOUT_S, _FIRST_PAUSE_S
    while (said := _read(path)) is None or said["start"] != start:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"rank 0 did not say within {_TIMEOUT_S:.0f} s where the ranks meet ({str(path)!r}): does every node "
                "see the run folder? name one on a shared file system with --out"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return Meeting(address=str(said["address"]), port=int(said["port"]))


def _read(path: Path) -> dict[str, Any] | None:
    """What lies there; on NFS a file may be seen as missing, or as stale, for a while."""
    try:
        os.listdir(path.parent)  # lets an NFS client look again
        return dict(json.loads(path.read_bytes()))
    except OSError:
        return None
