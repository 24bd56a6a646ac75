"""OtherUser: a second user of this machine, with an interpreter, our code and a home that this user may read."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NAME = "nobody"
"""Every Linux has this user, and nothing belongs to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherUser:
    """Runs commands as somebody else."""

    uid: int
    home: Path
    """A folder of this user's own."""
    python: Path
    site_packages: Path

    def run(
        self, *arguments: str, cwd: Path, environment: dict[str, str], root: Path
    ) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` with the code below `root`."""
        return subprocess.run(
            [
                "setpriv",
                f"--reuid={self.uid}",
                f"--regid={self.uid}",
                "--clear-groups",
                str(self.python),
                *arguments,
            ],
            cwd=cwd,
            env={
                **environment,
                "HOME": str(self.home),
                "USER": NAME,
                "LOGNAME": NAME,
                "PYTHONPATH": os.pathsep.join([str(root), str(self.site_packages)]),
                "PYTHONSAFEPATH": "1",
                "MIRADA_CACHE": str(self.home / "cache"),
                "LD_LIBRARY_PATH": str(self.python.parents[1] / "lib"),  # where its own libpython is seen
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def can_read(self, folder: Path) -> bool:
        """Whether this user may list a folder."""
        listing = [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.uid}",
            "--clear-groups",
            "ls",
            str(folder),
        ]
        return subprocess.run(listing, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def other_user(folder: Path) -> Iterator[OtherUser]:
    """`folder` is one that everybody may enter. Skips where nobody may be impersonated or nothing be mounted."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("acting as another user needs root and setpriv")
    # The interpreter may lie in a home that is closed to others: they see it through a mount.
    base, place = Path(sys.base_prefix), folder / "python"
    place.mkdir()
    mounted = subprocess.run(["mount", "--bind", str(base), str(place)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is refused: {mounted.stderr.strip()}")
    try:
        user = _other_user(folder, place)
        if not user.can_read(user.site_packages):
            pytest.skip(f"{str(user.site_packages)!r} is closed to other users")
        yield user
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _other_user(folder: Path, base: Path) -> OtherUser:
    uid = pwd.getpwnam(NAME).pw_uid
    home = folder / "home"
    home.mkdir()
    os.chown(home, uid, uid)
    executable = Path(os.path.realpath(sys.executable)).relative_to(Path(sys.base_prefix).resolve())
    return OtherUser(
        uid=uid, home=home, python=base / executable, site_packages=Path(site.getsitepackages()[0])
    )
