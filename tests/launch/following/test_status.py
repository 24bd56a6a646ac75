"""The table of runs, its JSON, and what is printed while they go on."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine.events import EventLog
from launch.following.event_tail import LOG_NAME, Progress
from launch.following.run_state import RunState
from launch.following.slurm_state import JobState
from launch.following.status import describe, show_status, status_view, watch_status
from tests.support.tracked_run import wait_for


def run_state(**fields: Any) -> RunState:
    progress = Progress(
        phase="running",
        step=1200,
        total_steps=4000,
        loss=0.51234,
        images_per_s=2345.6,
        seconds_left=3725.0,
        saved_step=1000,
        num_starts=3,
        ranks=16,
        host="n1",
    )
    job = JobState(job_id="17", state="RUNNING", nodes="n[1-2]", time_left="1:59:59", restarts=1)
    return RunState(
        **{
            "folder": Path("runs/vit"),
            "state": "running",
            "why": "",
            "progress": progress,
            "job": job,
            "submission": None,
            "process": None,
            **fields,
        }
    )


def render(*states: RunState, width: int = 120, problem: str = "") -> str:
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(status_view(states, problem=problem))
    return captured.get()


def test_a_row_says_state_step_loss_pace_time_left_restarts_and_nodes() -> None:
    heading, row = render(run_state()).splitlines()
    assert heading.split() == ["run", "state", "step", "loss", "images/s", "left", "restarts", "job", "nodes"]
    words = "runs/vit running 1,200/4,000 30% 0.5123 2,346 1:02:05 2 n[1-2]"
    assert row.split() == words.split()


def test_reasons_and_problems_stand_below_the_table() -> None:
    text = render(run_state(state="gave up", why="the same failure 3 times"), problem="SLURM does not answer")
    assert text.splitlines()[-2:] == ["runs/vit: the same failure 3 times", "SLURM does not answer"]


def test_a_run_that_does_not_train_has_no_time_left() -> None:
    row = render(run_state(state="requeued")).splitlines()[1]
    assert "1:02:05" not in row and "requeued" in row


def test_on_a_narrow_terminal_names_fold_and_numbers_stay_whole() -> None:
    state = run_state(folder=Path("runs/" + "a-long-name-of-a-run-" * 4))
    lines = render(state, width=80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "1,200/4,000" in lines[1] and len(lines) > 2


def test_json_holds_every_number() -> None:
    told = describe(run_state())
    assert json.loads(json.dumps(told)) == told
    assert {key: told[key] for key in ("step", "total_steps", "loss", "images_per_s", "seconds_left")} == {
        "step": 1200,
        "total_steps": 4000,
        "loss": 0.51234,
        "images_per_s": 2345.6,
        "seconds_left": 3725.0,
    }
    assert (told["restarts"], told["nodes"], told["slurm_state"], told["time_left_of_job"]) == (
        2,
        "n[1-2]",
        "RUNNING",
        "1:59:59",
    )


def test_a_run_that_slurm_does_not_know_shows_its_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(tmp_path / LOG_NAME)
    log.append("run", total_steps=9, host="elsewhere")
    log.append("failed", step=3, error="ValueError: a reason")
    show_status([tmp_path], as_json=True)
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["state"], told["why"], told["nodes"], told["job_id"]) == (
        "failed",
        "ValueError: a reason",
        "elsewhere",
        None,
    )


def test_watching_into_a_file_prints_changes_and_ends_with_the_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = {name: EventLog(make(tmp_path / name)) for name in ("a", "b")}
    for log in logs.values():
        log.append("run", total_steps=2, host="elsewhere")
    logs["a"].append("finished", step=2)
    shown = tmp_path / "shown"
    with shown.open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        watching = threading.Thread(
            target=watch_status,
            args=([tmp_path / "a", tmp_path / "b"],),
            kwargs={"every_s": 0.02, "as_json": False},
        )
        watching.start()
        wait_for(lambda: f"{tmp_path}/b: running" in shown.read_text(), "the first look")
        logs["b"].append("metrics", step=1, images=8, values={"train/loss": 0.25, "perf/step_s": 2.0})
        wait_for(lambda: "loss 0.2500" in shown.read_text(), "the first point")
        logs["b"].append("finished", step=2)
        watching.join(timeout=120)
        assert not watching.is_alive()
    lines = [line for line in shown.read_text().splitlines() if line.startswith(f"{tmp_path}/b")]
    assert lines == [
        f"{tmp_path}/b: running",
        f"{tmp_path}/b: running  step 1/2  50%  loss 0.2500  0:02 left",
        f"{tmp_path}/b: finished (without a release)  step 2/2 100%  loss 0.2500",
    ]


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder / LOG_NAME
