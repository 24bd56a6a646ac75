"""The tutorials, command by command as a reader types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.images import make_image_folder
from tests.support.tutorial import ROOT, commands_of, run_tutorial

pytestmark = pytest.mark.slow

FRUGAL = "train.ranks=1 data.workers=0 tracking.uri=off"
"""Other tests have ranks, workers and MLflow."""


def test_your_images_to_a_student(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "PHOTOS" / "train", per_class=8)
    make_image_folder(tmp_path / "PHOTOS" / "val", per_class=3)
    run_tutorial(
        ROOT / "docs" / "your_images.md",
        tmp_path,
        {
            "100 epochs": "4 steps",
            "global_batch=64": f"global_batch=8 {FRUGAL}",
            "image_size=64": "image_size=28",
        },
    )
    page = (tmp_path / "report.html").read_text()
    assert "Reliability" in page and "What they were shown" in page
    card = (tmp_path / "student" / "README.md").read_text()
    assert "license: apache-2.0" in card and "## Calibration" in card


def test_a_command_that_fails_is_shown_with_what_it_said(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lines = ["# Page", "", "```sh", "echo fine", "# a remark", "cat <<'END' > text", "an ear", "END"]
    page.write_text("\n".join([*lines, "mirada config show \\", "  none.yaml", "```", ""]))
    assert commands_of(page.read_text()) == [
        "echo fine",
        "cat <<'END' > text\nan ear\nEND",
        "mirada config show \\\n  none.yaml",
    ]
    with pytest.raises(AssertionError, match=r"(?s)exit code 2 from\n\$ mirada config show .*none\.yaml"):
        run_tutorial(page, tmp_path / "work", {"an ear": "a nose"})
    assert (tmp_path / "work" / "text").read_text() == "a nose\n"
    with pytest.raises(AssertionError, match=r"no command of .*page\.md holds '9 epochs'"):
        run_tutorial(page, tmp_path / "work", {"9 epochs": "1 step"})
