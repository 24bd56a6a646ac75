"""How our programs are started: by module name, with our packages first on their import path."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
"""Folder that holds configs/, data_pipeline/ and the other packages."""

_RUN_MODULE = (
    "import runpy, sys; del sys.path[0], sys.argv[0]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""What ``-m`` does, without the working directory first: Python 3.11 and later can be told so by PYTHONSAFEPATH."""


def program_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs a program with this interpreter."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-m", module, *arguments]
    return [sys.executable, "-c", _RUN_MODULE, module, *arguments]


def program_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with our packages first, and before a `models/` that lies in the working directory."""
    others = [
        part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(ROOT)
    ]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *others]),
        "PYTHONSAFEPATH": "1",
    }


def become_program(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by a program, which then gets every signal itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = program_command(module, arguments)
    os.execve(command[0], command, program_environment(os.environ))
