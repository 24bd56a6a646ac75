"""How a program ends: a user's mistake is a message and code 2, everything else keeps its traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

from configs.base import ConfigError

USAGE = 2
INTERRUPTED = 130


def run_main(function: Callable[[], int | None]) -> NoReturn:
    """Runs `function` and exits with its code; ConfigError and a full disk end with 2, Ctrl-C with 130."""
    try:
        code = function() or 0
    except ConfigError as mistake:
        code = _complain(str(mistake))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as failure:
        if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {failure.filename!r}" if failure.filename else ""
        code = _complain(f"no space left on the device{where}: free some and run the same command again")
    sys.exit(code)


def _complain(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return USAGE
