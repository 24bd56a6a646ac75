"""The command line that a training program understands: RECIPE [key=value ...] --out DIR [--fresh]."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What the user asked a training program to do."""

    program: str
    recipe: str
    overrides: tuple[str, ...]
    out: Path
    fresh: bool

    def __str__(self) -> str:
        """The command to type, without ``--fresh``: typed again it resumes."""
        return shlex.join(["mirada", self.program, self.recipe, *self.overrides, "--out", str(self.out)])


def parse_command(program: str, arguments: Sequence[str]) -> Command:
    """Reads the arguments of ``python -m PROGRAM``; a wrong one prints the usage and exits with 2."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", allow_abbrev=False)
    parser.add_argument("recipe", help="YAML recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="run folder; an interrupted run in it is resumed"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over; old contents move to a numbered folder"
    )
    given = parser.parse_intermixed_args(arguments)
    return Command(
        program=program,
        recipe=given.recipe,
        overrides=tuple(given.overrides),
        out=given.out,
        fresh=given.fresh,
    )
