"""The loader benchmark's lines become tables in which ratios are taken within a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loader_results import ratios, write_results


def test_a_ratio_is_taken_round_by_round_and_only_where_both_were_measured() -> None:
    lines = [_line("mirada", 1, 900.0), _line("dali", 1, 300.0), _line("mirada", 2, 100.0)]
    lines += [_line("dali", 2, 50.0), _line("mirada", 3, 700.0)]
    assert ratios(lines, {"loader": "mirada"}, {"loader": "dali"}) == [3.0, 2.0]


def test_a_loader_that_failed_has_no_row_and_what_is_missed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, Any]] = [
        _line(loader, number, rate * number)
        for number in (1, 2, 3)
        for loader, rate in {
            "mirada": 450.0,
            "mirada_marked": 540.0,
            "plain_webdataset": 100.0,
            "dali": 300.0,
            "entropy_wall": 500.0,
        }.items()
    ]
    failed = {key: value for key, value in _line("energon", 1, 0.0).items() if key != "images_per_s"}
    log = tmp_path / "loader.jsonl"
    searched = _line("mirada", 0, 1e9)
    log.write_text("\n".join(json.dumps(line) for line in [searched, *lines, {**failed, "error": "no"}]))
    write_results(log, tmp_path)
    results = json.loads((tmp_path / "loader.json").read_text())
    rows = {row["name"].split()[0]: row for row in results["rows"]}
    assert list(rows) == ["webdataset,", "NVIDIA", "Mirada", "Mirada,", "entropy"]
    assert rows["Mirada"]["images_per_s"] == 900.0 and rows["Mirada"]["ours"] is None
    assert rows["NVIDIA"]["ours"] == "1.50 [1.50-1.50]" and rows["NVIDIA"]["to_plain"] == 3.0
    assert rows["NVIDIA"]["marked"] == "1.80 [1.80-1.80]" and rows["Mirada,"]["to_plain"] == pytest.approx(
        5.4
    )
    assert "0.90 [0.90-0.90] of it, with restart markers 1.08 [1.08-1.08]" in results["note"]
    told = capsys.readouterr().out
    assert "yes webdataset" in told and "NO  NVIDIA DALI, CPU, uint8: ours" in told
    assert "yes NVIDIA DALI, CPU, uint8: marked" in told


def _line(loader: str, number: int, rate: float) -> dict[str, Any]:
    return {
        "loader": loader,
        "corpus": "jpeg",
        "form": "uint8",
        "augmentation": "",
        "workers": 2,
        "round": number,
        "images_per_s": rate,
        "first_batch_s": 1.0,
        "start_s": 2.0,
        "memory_mb": 500.0,
        "of_files_mb": 50.0,
        "version": None,
    }
