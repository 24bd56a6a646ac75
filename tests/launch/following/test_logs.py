"""The end of what ranks said."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from configs.base import ConfigError
from engine.events import EventLog
from launch.following.event_tail import LOG_NAME
from launch.following.logs import last_lines, log_files, show_logs
from launch.submission.record import with_jobs, write_submission
from tests.launch.submission.test_record import submission


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("num_lines", [0, 1, 2, 499, 500, 501])
@pytest.mark.parametrize("width", [1, 40, 3000])
def test_the_last_lines_are_those_of_the_whole_file(tmp_path: Path, num_lines: int, width: int) -> None:
    lines = [f"{number} {'x' * width}\n" for number in range(500)]
    path = write(tmp_path / "log", "".join(lines))
    assert last_lines(path, num_lines) == ("".join(lines[max(0, 500 - num_lines) :]), path.stat().st_size)


def test_a_last_line_without_an_end_is_a_line(tmp_path: Path) -> None:
    assert last_lines(write(tmp_path / "log", "one\ntwo\nthr"), 2) == ("two\nthr", 11)


def test_the_newest_job_comes_before_the_programs_own_log(tmp_path: Path) -> None:
    write_submission(with_jobs(submission(tmp_path), ("18",)))
    write(tmp_path / "launch" / "17_0_log.out", "old")
    newest = write(tmp_path / "launch" / "18_0_log.out", "new")
    of_rank_1 = write(tmp_path / "launch" / "18_1_log.out", "rank 1")
    own = write(tmp_path / "logs" / "rank_0.log", "own")
    assert log_files(tmp_path, [0]) == [newest, own]
    assert log_files(tmp_path, [1]) == [of_rank_1]


def test_a_task_of_an_array_has_its_output_in_the_arrays_folder(tmp_path: Path) -> None:
    record = replace(submission(tmp_path / "sweep" / "point"), parent=tmp_path / "sweep")
    write_submission(with_jobs(record, ("17_3",)))
    output = write(tmp_path / "sweep" / "launch" / "17_3_0_log.out", "mine")
    write(tmp_path / "sweep" / "launch" / "17_30_0_log.out", "another's")
    assert log_files(tmp_path / "sweep" / "point", [0]) == [output]


def test_files_are_shown_under_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "logs" / "rank_0.log", "a\nb\nc\n")
    second = write(tmp_path / "logs" / "rank_3.log", "d\n")
    show_logs(tmp_path, ranks=[0, 3], num_lines=2, follow=False)
    assert capsys.readouterr().out == f"==> {first} <==\nb\nc\n==> {second} <==\nd\n"


def test_a_rank_that_said_nothing_is_a_message(tmp_path: Path) -> None:
    write(tmp_path / "logs" / "rank_0.log", "a\n")
    with pytest.raises(
        ConfigError, match=r"no log of rank 7 or 8 in .*: it has not begun, see mirada status"
    ):
        show_logs(tmp_path, ranks=[7, 8], num_lines=2, follow=False)


def test_following_ends_with_the_run_and_misses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.following.logs._LOOK_S", 0.0)
    log = EventLog(tmp_path / LOG_NAME)
    log.append("run", total_steps=9, host="elsewhere")
    path = write(tmp_path / "logs" / "rank_0.log", "begun\n")
    following = threading.Thread(
        target=show_logs, args=(tmp_path,), kwargs={"ranks": [0], "num_lines": 5, "follow": True}
    )
    following.start()
    written = [f"more {number}\n" for number in range(2000)]
    with path.open(
        "a", buffering=1
    ) as lines:  # each line by itself, while its reader looks for the last ones
        lines.writelines(written)
    log.append("finished", step=9)
    following.join(timeout=120)
    assert not following.is_alive()
    shown = capsys.readouterr().out.splitlines(keepends=True)
    assert shown[0] == f"==> {path} <==\n"
    assert shown[1:] == ["begun\n", *written][-len(shown) + 1 :]
    assert len(shown) > 5
