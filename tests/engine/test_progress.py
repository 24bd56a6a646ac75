"""What a run shows while it goes."""

from __future__ import annotations

import io

from rich.console import Console

from engine.progress import Progress

VALUES = {"train/loss": 1.25, "perf/images_per_s": 1234.5}


def shown(*, terminal: bool, quiet: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False, soft_wrap=True)
    progress = Progress("run", quiet=quiet, console=console)
    progress.begin(0, 20)
    progress.advance(10)
    progress.report(10, VALUES)
    progress.note("step 10: top-1 50.00 %")
    progress.end()
    return out.getvalue()


def test_without_a_terminal_each_report_is_one_plain_line() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[0].startswith("run: step 10/20  loss 1.2500  1,234 images/s  ")
    assert lines[1:] == ["run: step 10: top-1 50.00 %"]


def test_a_terminal_gets_a_bar_with_loss_and_speed() -> None:
    text = shown(terminal=True)
    assert "10/20" in text and "loss 1.2500" in text and "1,234 images/s" in text
    assert "top-1 50.00 %" in text


def test_other_ranks_show_nothing() -> None:
    assert shown(terminal=False, quiet=True) == shown(terminal=True, quiet=True) == ""
