"""Claims on a target folder: one build at a time, or the tasks of one array, each only once."""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.packing.share import Share

log = logging.getLogger(__name__)

_CLAIM_FILE = ".build.lock"


@contextmanager
def claimed(target: Path, share: Share) -> Iterator[None]:
    """Creates `target` and keeps other builds out of it; a dead process has no claim.

    A build that is alone holds the folder's claim by itself; tasks hold it together, and their own one each.
    """
    existed = target.exists()
    target.mkdir(parents=True, exist_ok=True)
    alone = share.is_alone
    own = target / (_CLAIM_FILE if alone else f".build.{share.index}-of-{share.count}.lock")
    with ExitStack() as held:
        if not alone:
            held.enter_context(
                _locked(target / _CLAIM_FILE, fcntl.LOCK_SH, f"another build is writing to {target}")
            )
        what = "another build is" if alone else f"{share} or another build is already"
        held.enter_context(_locked(own, fcntl.LOCK_EX, f"{what} writing to {target}"))
        try:
            yield
        finally:
            own.unlink(missing_ok=True)
            if not existed and not any(target.iterdir()):
                target.rmdir()


def remove_claims(target: Path) -> None:
    """Deletes the claim that tasks hold together, once there is nothing left to write."""
    (target / _CLAIM_FILE).unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, kind: int, who: str) -> Iterator[None]:
    with open(file, "a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except OSError as fault:
            if fault.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(f"{who}: wait for it, or choose another folder") from None
            log.warning(
                "%s: no lock to be had (%s); start no second build there meanwhile",
                file.parent,
                fault.strerror,
            )
        yield
