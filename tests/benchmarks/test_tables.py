"""The tables in README and docs are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables


def test_no_table_is_older_than_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_table_has_a_row_per_result_in_the_format_of_its_column(tmp_path: Path) -> None:
    results = {
        "columns": {"name": ["network", "s"], "top1": ["top-1, %", ".2f"]},
        "rows": [{"name": "teacher", "top1": 83.456}, {"name": "student"}],
        "note": "How it was measured.",
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    lines = tables.render(path).splitlines()
    assert lines[0] == "| network | top-1, % |"
    assert lines[2:4] == ["| teacher | 83.46 |", "| student | - |"]
    assert lines[-1] == "How it was measured."
