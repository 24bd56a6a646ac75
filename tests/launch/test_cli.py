"""The `mirada` command as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = "configs/smoke/pretrain_vit.yaml"


def mirada(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_help_lists_every_command() -> None:
    shown = mirada("--help").stdout
    for command in (
        "data",
        "config",
        "pretrain",
        "finetune",
        "teach",
        "evaluate",
        "attend",
        "advise",
        "export",
        "predict",
        "report",
        "sync",
        "demo",
        "status",
        "logs",
        "cancel",
        "requeue",
        "doctor",
    ):
        assert f" {command} " in shown


def test_help_is_shown_in_half_a_second() -> None:
    """The best of five processor times: other work on the machine is not our doing."""
    spent = []
    for _ in range(5):
        before = os.times()
        mirada("--help")
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(spent) < 0.5


@pytest.mark.parametrize(
    "command", [["--help"], ["pretrain", "--help"], ["teach", "--help"], ["config", "show", PRETRAIN]]
)
def test_no_command_imports_torch_before_a_program_starts(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    result = mirada(*command, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert result.returncode == 0, result.stdout + result.stderr


def test_config_show_names_the_origin_of_each_value() -> None:
    shown = mirada("config", "show", PRETRAIN, "optim.lr=0.125").stdout
    assert "  lr: 0.125  # command line\n" in shown
    assert "# default\n" in shown
    assert "# pretrain_vit.yaml\n" in shown


def test_config_show_can_be_fed_back_in(tmp_path: Path) -> None:
    first = mirada("config", "show", PRETRAIN, "train.seed=5").stdout
    (tmp_path / "again.yaml").write_text(first)
    second = mirada("config", "show", str(tmp_path / "again.yaml"), "--program", "pretrain").stdout
    assert without_comments(first) == without_comments(second)


def test_config_show_asks_for_the_program_when_the_path_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    result = mirada("config", "show", str(tmp_path / "mine.yaml"))
    assert result.returncode == 2
    assert "--program pretrain or --program finetune" in result.stderr


def test_every_mistake_is_reported_before_any_process_starts(tmp_path: Path) -> None:
    for name in ("here", "path"):
        (tmp_path / name).mkdir()
    (tmp_path / "path" / "torch.py").write_text("raise SystemExit('torch was imported')")
    result = mirada(
        "pretrain", PRETRAIN, "optim.lrr=1", "train.global_batch=many", "--out", "run",
        folder=tmp_path / "here", PYTHONPATH=os.pathsep.join([str(tmp_path / "path"), str(ROOT)]),
    )  # fmt: skip
    assert result.returncode == 2
    assert "optim.lrr: no such key; did you mean 'lr'?  [command line]" in result.stderr
    assert "train.global_batch: 'many' is not allowed" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_an_unknown_recipe_is_a_message_with_a_guess() -> None:
    result = mirada("pretrain", "configs/smoke/pretrain_vi.yaml")
    assert result.returncode == 2
    assert "did you mean" in result.stderr and PRETRAIN in result.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [("data", "mirada data"), pytest.param("evaluate", "--data", marks=pytest.mark.slow)],
)
def test_programs_show_their_own_help(command: str, words: str) -> None:
    result = mirada(command, "--help")
    assert result.returncode == 0, result.stderr
    assert words in result.stdout


def test_under_torchrun_the_command_becomes_the_rank_itself(tmp_path: Path) -> None:
    """The same process goes on as the program: no launcher stands between torchrun and its rank."""
    (tmp_path / "torch.py").write_text("import time; time.sleep(600)")  # the program comes as far as this
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "pretrain", PRETRAIN, "--out", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path, "RANK": "0", "WORLD_SIZE": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while b"-m\0pretrain\0" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def without_comments(text: str) -> list[str]:
    return [line.split("  # ")[0] for line in text.splitlines()]
