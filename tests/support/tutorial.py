"""Runs the commands of a page of docs one by one, as a reader types them, with the `mirada` of this tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = re.compile(r"^```(?:sh|bash|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_TIMEOUT_S = 900
_TAIL_CHARS = 6000


def run_tutorial(page: Path, workdir: Path, replacements: Mapping[str, str] | None = None) -> None:
    """Runs each command of the page's shell blocks (```sh) in `workdir`; fails with the first that fails.

    `replacements` put small numbers in place of a reader's ("20 epochs": "4 steps"); one that changes nothing fails
    too, so that page and test stay together. `mirada` and `python` are those of this tree and its environment.
    """
    commands = commands_of(page.read_text())
    assert commands, f"{page} has no command in a ```sh block"
    for before, after in (replacements or {}).items():
        assert any(before in command for command in commands), f"no command of {page} holds {before!r}"
        commands = [command.replace(before, after) for command in commands]
    workdir.mkdir(parents=True, exist_ok=True)
    environment = _environment(workdir)
    for command in commands:
        _run(command, workdir, environment)


def commands_of(text: str) -> list[str]:
    """The commands of all shell blocks in order: a line each, with what a backslash or a here-document adds to it."""
    return [command for block in _BLOCK.findall(text) for command in _split(block)]


def _split(block: str) -> Iterator[str]:
    lines = iter(block.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines))
        heredoc = _HEREDOC.search(command[-1])
        while heredoc is not None and command[-1].strip() != heredoc[2]:
            command.append(next(lines))
        yield "\n".join(command)


def _environment(workdir: Path) -> dict[str, str]:
    folder = workdir / ".bin"
    folder.mkdir(exist_ok=True)
    mirada = folder / "mirada"
    mirada.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m launch.cli "$@"\n')
    mirada.chmod(0o755)
    path = [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(path), "COLUMNS": "140"}


def _run(command: str, workdir: Path, environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=workdir,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"not done after {_TIMEOUT_S} s:\n$ {command}\n{late.output}") from late
    if done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode} from\n$ {command}\n{done.stdout[-_TAIL_CHARS:]}")
