"""report.html in a real browser: it renders, it asks nothing of a network, and the console stays empty."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.results.report import write_report
from engine.results.reporting.inputs import Inputs
from tests.engine.results.test_report import _detailed_row, _make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)"),
]


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Headless, in a profile of its own, with the console on standard error; no name resolves to anything."""
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={page.parent / 'profile'}", "--window-size=1200,3600",
    ]  # fmt: skip
    return subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    teacher = _make_run(folder / "teacher")
    origins = {"teacher": {"path": str(teacher / "release"), "run_id": "id-teacher"}}
    student = _make_run(folder / "student", program="finetune", origins=origins)
    red = np.zeros((60, 90, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite(str(folder / "picture.png"), red)
    content = {
        "num_images": 1000,
        "rows": [_detailed_row("teacher"), _detailed_row()],
        "pictures": [{"title": "Reliability", "file": "picture.png"}],
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    out = folder / "report.html"
    inputs = Inputs(evaluation=folder / "evaluation.json", attention=folder / "picture.png")
    write_report(out, [teacher, student], inputs=inputs, title="A report")
    return out


def test_it_renders_without_a_word_on_the_console(page: Path) -> None:
    assert_quiet_and_drawn(page, page.with_name("screen.png"))
    picture = cv2.imread(str(page.with_name("screen.png")))
    assert picture.shape[:2] == (3600, 1200)
    is_red = (picture[..., 2] > 240) & (picture[..., 1] < 20) & (picture[..., 0] < 20)
    assert is_red.sum() > 20_000  # the inline pictures were decoded
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)[::7].tolist()}
    assert len(colours) > 100  # charts and text with soft edges


def test_the_browser_sees_every_section_and_curve(page: Path) -> None:
    done = browse(page, "--dump-dom")
    assert done.returncode == 0
    for words in (
        "Result",
        "Class by class",
        "Runs",
        "Where each run comes from",
        "Curves",
        "Where they look",
    ):
        assert f"<h2>{words}</h2>" in done.stdout
    assert done.stdout.count("<polyline") >= 10


def assert_quiet_and_drawn(page: Path, screen: Path) -> None:
    done = browse(page, f"--screenshot={screen}")
    assert done.returncode == 0 and screen.is_file(), done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []


def test_a_page_that_does_complain_is_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>missing.call()</script><p>text")
    assert [line for line in browse(broken, "--dump-dom").stderr.splitlines() if "CONSOLE" in line]
