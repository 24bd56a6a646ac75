"""Programs run from our own folder, whatever lies in the working directory, with every Python that is supported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = """
import os, subprocess, sys
from launch import programs
arguments, environment = ["a b", "--c"], programs.program_environment(os.environ)
command = programs.program_command("probe", arguments)
if sys.argv[1] == "3.10":
    command = [sys.executable, "-c", programs._RUN_MODULE, "probe", *arguments]
    del environment["PYTHONSAFEPATH"]
sys.exit(subprocess.run(command, env=environment).returncode)
"""
PROBE = """
import json, sys
print(json.dumps({"arguments": sys.argv[1:], "file": __file__, "name": __name__, "spec": __spec__.name}))
"""


@pytest.mark.parametrize("way", ["this Python's", "3.10"])
def test_a_program_of_the_same_name_in_the_working_directory_is_not_taken(way: str, tmp_path: Path) -> None:
    for place, text in (("ours", PROBE), ("here", "raise SystemExit('the wrong one')")):
        (tmp_path / place / "probe").mkdir(parents=True)
        (tmp_path / place / "probe" / "__init__.py").touch()
        (tmp_path / place / "probe" / "__main__.py").write_text(text)
    (tmp_path / "ours" / "launch").mkdir()
    for name in ("__init__.py", "programs.py"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "ours" / "launch" / name)
    result = subprocess.run(
        [sys.executable, "-c", START, way],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "ours")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "arguments": ["a b", "--c"],
        "file": str(tmp_path / "ours" / "probe" / "__main__.py"),
        "name": "__main__",
        "spec": "probe.__main__",
    }
