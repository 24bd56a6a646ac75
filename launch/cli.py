"""The `mirada` command: puts the folder that holds our packages first on the import path, then runs the app."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Entry point of the console script, where this file is `mirada.launch.cli`, and of ``python -m launch.cli``."""
    root = str(Path(__file__).resolve().parents[1])
    if root in sys.path:
        sys.path.remove(root)
    sys.path.insert(0, root)
    from launch.app import run

    run()


if __name__ == "__main__":
    main()
