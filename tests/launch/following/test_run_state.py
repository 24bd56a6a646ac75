"""How a run stands when SLURM, its log and the notes beside its submission say different things."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.events import EventLog
from launch.following.event_tail import LOG_NAME, Progress
from launch.following.run_state import Notes, RunWatch, format_seconds, judge, read_notes
from launch.following.slurm_state import JobState

NOW = 10_000.0
RUNNING = Progress(
    phase="running", step=40, saved_step=30, num_starts=1, start_time=9_000.0, event_time=9_990.0
)
STOPPED = Progress(phase="stopped", why="SIGUSR2", step=40, saved_step=40, num_starts=1, start_time=9_000.0)
FAILED = Progress(phase="failed", why="ValueError: no", step=40, num_starts=1, start_time=9_000.0)
FINISHED = Progress(
    phase="finished", step=90, saved_step=90, num_starts=1, start_time=9_000.0, is_released=True
)
NEW = Progress()


def job(state: str, *, reason: str = "", start_time: float | None = 8_900.0, restarts: int = 0) -> JobState:
    return JobState(job_id="17", state=state, reason=reason, start_time=start_time, restarts=restarts)


def state_of(
    progress: Progress,
    slurm: JobState | None = None,
    notes: Notes | None = None,
    *,
    process: int | None = None,
    is_here: bool = True,
) -> tuple[str, str]:
    return judge(progress, slurm, notes or Notes(), process=process, is_here=is_here, now=NOW)


@pytest.mark.parametrize(
    ("progress", "slurm", "state"),
    [
        (NEW, job("PENDING", reason="Priority", start_time=None), "waiting"),
        (NEW, job("RUNNING"), "starting"),
        (RUNNING, job("RUNNING"), "running"),
        (RUNNING, job("RUNNING", start_time=9_500.0), "starting"),
        (STOPPED, job("PENDING", reason="BeginTime", start_time=10_060.0, restarts=1), "requeued"),
        (STOPPED, job("RUNNING"), "stopping"),
        (RUNNING, job("COMPLETING"), "stopping"),
        (FINISHED, job("RUNNING"), "finished"),
        (FINISHED, job("COMPLETED"), "finished"),
        (STOPPED, job("CANCELLED"), "cancelled"),
        (STOPPED, job("COMPLETED"), "stopped"),
        (FAILED, job("FAILED"), "failed"),
        (RUNNING, job("OUT_OF_MEMORY"), "failed"),
        (NEW, job("FAILED"), "failed"),
        (NEW, job("COMPLETED"), "finished"),
    ],
)
def test_a_submitted_run_is_as_slurm_and_its_log_together_say(
    progress: Progress, slurm: JobState, state: str
) -> None:
    assert state_of(progress, slurm)[0] == state


def test_a_job_that_waits_says_for_what_and_how_long() -> None:
    _, why = state_of(STOPPED, job("PENDING", reason="BeginTime", start_time=NOW + 65, restarts=1))
    assert why == "SLURM's pause before a requeue, starts in about 1:05"
    assert state_of(NEW, job("PENDING", reason="Licenses", start_time=None)) == ("waiting", "Licenses")


def test_a_job_that_ended_without_a_word_of_the_run_is_explained_by_slurm() -> None:
    ended = JobState(job_id="17", state="OUT_OF_MEMORY", exit_code="0:125")
    assert state_of(RUNNING, ended) == ("failed", "SLURM: OUT_OF_MEMORY (exit code 0:125)")


def test_a_run_that_gave_up_says_why() -> None:
    notes = Notes(gave_up="the same failure 3 times in a row at step 40: ValueError: no")
    assert state_of(FAILED, job("FAILED"), notes) == ("gave up", notes.gave_up)


def test_a_cancelled_run_says_what_is_saved() -> None:
    notes = Notes(cancelled=True)
    assert state_of(RUNNING, job("RUNNING"), notes) == ("stopping", "asked to save and stop")
    assert state_of(STOPPED, None, notes) == ("cancelled", "saved after step 40")
    assert state_of(RUNNING, None, notes) == ("cancelled", "saved after step 30, at step 40")
    assert state_of(NEW, None, notes) == ("cancelled", "before its first step")


@pytest.mark.parametrize(
    ("process", "is_here", "event_time", "state"),
    [
        (4711, True, NOW, "running"),
        (4711, False, NOW, "running"),
        (0, True, NOW, "vanished"),
        (0, False, NOW - 5, "running"),
        (None, True, NOW - 5, "running"),
        (None, True, NOW - 700, "silent"),
        (0, False, NOW - 700, "silent"),
    ],
)
def test_without_slurm_the_lock_and_the_age_of_the_log_decide(
    process: int | None, is_here: bool, event_time: float, state: str
) -> None:
    progress = Progress(phase="running", step=4, num_starts=1, host="n9", event_time=event_time)
    assert state_of(progress, process=process, is_here=is_here)[0] == state


def test_notes_are_read_from_beside_the_submission(tmp_path: Path) -> None:
    assert read_notes(tmp_path) == Notes()
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "cancelled").touch()
    gave_up = {"reason": "the budget is spent", "job_id": "17", "restart": 2, "time": NOW}
    (tmp_path / "launch" / "gave_up.json").write_text(json.dumps(gave_up))
    assert read_notes(tmp_path) == Notes(cancelled=True, gave_up="the budget is spent")


_HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_a_run_on_this_machine_is_running_as_long_as_its_process_lives(tmp_path: Path) -> None:
    import socket

    log = EventLog(tmp_path / LOG_NAME)
    log.append("run", total_steps=9, host=socket.gethostname())
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    watch = RunWatch([tmp_path])
    (state,) = watch.look()
    assert (state.state, state.process, state.is_final) == ("running", holder.pid, False)

    holder.kill()
    holder.wait()

    (state,) = watch.look()
    assert (state.state, state.process, state.is_final) == ("vanished", None, True)
    assert state.why == "its process is gone and said nothing"


def test_a_run_that_ends_while_it_is_looked_at_is_no_vanished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path / LOG_NAME)
    log.append("run", total_steps=9)

    def ended_since(folder: Path) -> int:
        log.append("finished", step=9)
        return 0

    monkeypatch.setattr("launch.following.run_state.training_process", ended_since)
    assert RunWatch([tmp_path]).look()[0].state == "finished"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (65, "1:05"), (7384, "2:03:04"), (3 * 86400 + 4 * 3600 + 300, "3 d 04:05")],
)
def test_times_are_written_as_people_read_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
