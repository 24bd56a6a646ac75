"""``held_teach.py FILE RECIPE --out CACHE ...``: `mirada teach` that never writes that file: to be killed there."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from configs.exit_code import run_main
from data_pipeline.sidecar import write_records
from finetune import teach


def main() -> None:
    last = Path(sys.argv.pop(1))

    def write_or_wait(path: Path, rows: Any, **more: Any) -> None:
        if path == last:
            time.sleep(600)
        write_records(path, rows, **more)

    program: Any = teach
    program.write_records = write_or_wait
    teach.app(prog_name="mirada teach")


if __name__ == "__main__":
    run_main(main)
