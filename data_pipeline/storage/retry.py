"""Retries: whether a failure of a remote read may pass, how long to wait, and the error that ends the waiting."""

from __future__ import annotations

import logging
import random
import time

from data_pipeline.errors import DataError

log = logging.getLogger(__name__)

PATIENCE_S = 300.0
"""How long a remote read goes on without a single byte before it is given up."""

_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 10.0
_PASSING_STATUSES = frozenset({408, 425, 429})  # besides all of 500 and more
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ValueError,  # addresses no file system knows, certificates that do not fit
)
_OUR_OWN = (DataError, TypeError, LookupError, AttributeError, NameError, AssertionError, MemoryError)


class Retries:
    """The failures of one remote read since a byte last came."""

    def __init__(self, url: str, *, patience_s: float) -> None:
        self._url = url
        self._patience_s = patience_s
        self._num_failed = 0
        self._failing_since = 0.0
        self._jitter = random.Random()  # not the global one, whose state belongs to training

    def progressed(self) -> None:
        """Bytes came: patience starts anew."""
        self._num_failed = 0

    def wait(self, error: Exception) -> None:
        """Sleeps before the next attempt; raises DataError if the failure is final or has lasted too long."""
        cause = _cause(error, self._url)
        if isinstance(cause, _OUR_OWN):
            raise cause
        if isinstance(cause, ImportError):
            raise DataError(f"{self._url!r} {missing_package(cause)}") from error
        now = time.monotonic()
        if self._num_failed == 0:
            self._failing_since = now
        self._num_failed += 1
        if not _may_pass(cause):
            raise DataError(f"{self._url!r} cannot be read: {_describe(cause)}; check the address") from error
        waited_s = now - self._failing_since
        if waited_s >= self._patience_s:
            raise DataError(
                f"{self._url!r} cannot be read: {_describe(cause)} ({self._num_failed} attempts in {waited_s:.0f} s); "
                "check the connection and the server"
            ) from error
        if self._num_failed == 1:
            log.warning("%s: %s; trying again for %.0f s", self._url, _describe(cause), self._patience_s)
        # Jitter: the ranks of a job, which all lost one server, do not come back to it all at once.
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(self._num_failed, 16))
        time.sleep(min(delay_s * self._jitter.uniform(0.5, 1.0), self._patience_s - waited_s))


def missing_package(error: ImportError) -> str:
    """What is said behind the name of an address that fsspec has no package for."""
    return (
        f"needs a package that is not installed ({error}); install it, or the extra for it: "
        "pip install 'mirada[s3]' for s3, 'mirada[http]' for http and https"
    )


def _cause(error: Exception, url: str) -> Exception:
    # fsspec words every failure to ask for an http object's size as "not found"; what happened is the cause.
    if (
        url.startswith("http")
        and isinstance(error, FileNotFoundError)
        and isinstance(error.__cause__, Exception)
    ):
        return error.__cause__
    return error


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status > 0:
        return status >= 500 or status in _PASSING_STATUSES
    return not isinstance(error, _FINAL) and "Credentials" not in type(error).__name__


def _describe(error: Exception) -> str:
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    if isinstance(status, int) and status > 0:
        return f"the server answers {status} {message or ''}".rstrip()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
