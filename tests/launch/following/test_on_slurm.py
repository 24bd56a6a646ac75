"""A submitted run followed by its commands, on a real SLURM with accounting: status, logs, requeue, cancel."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.events import read_events
from launch.submission.record import read_submission
from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

ROOT = Path(__file__).resolve().parents[3]
REASON = missing_for_slurm(accounting=True)
pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

LONG = (
    "configs/smoke/pretrain_vit.yaml",
    "train.duration=200k steps",
    "train.checkpoint_every=100k steps",
    "train.evaluate_every=200k steps",
    "train.global_batch=16",
    "train.log_every=1",
    "data.val=null",
    "data.workers=0",
    "tracking.uri=off",
)
BROKEN = "broken"
_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginNode:
    """Where a user types commands."""

    cluster: SlurmCluster
    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {**self.cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "launch.cli", *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type(self, *words: str, code: int = 0) -> str:
        """What a command prints; to the terminal or, when it fails as expected, as its error."""
        process = self.start(*words)
        output, error = process.communicate(timeout=_PATIENCE_S)
        assert process.returncode == code, output + error
        return output if code == 0 else error

    def launch(self, run: str, *settings: str) -> str:
        """Submits the long run and returns its job."""
        (self.folder / "c.yaml").write_text("kind: slurm\ntime: 30 min\ngrace_s: 300\n")
        self.type("launch", "pretrain", *LONG, *settings, "--cluster", "c.yaml", "--out", run)
        return self.job(run)

    def job(self, run: str) -> str:
        record = read_submission(self.folder / run)
        assert record is not None
        return record.job_ids[-1]

    def status(self, run: str) -> dict[str, Any]:
        (state,) = json.loads(self.type("status", run, "--json"))
        return dict(state)

    def wait_for(self, run: str, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition(state := self.status(run)):
            assert time.monotonic() < deadline, f"not within {_PATIENCE_S:.0f} s: {what}; it is {state}"
        return state


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginNode]:
    """SLURM forgets its jobs at the next minute, not after five; one has failed long before a test looks at it."""
    with slurm_cluster(num_nodes=2, accounting=True, extra="MinJobAge=2") as cluster:
        node = LoginNode(cluster=cluster, folder=tmp_path_factory.mktemp("following"))
        node.launch(BROKEN, "setup=[exit 3]")
        yield node


def has_begun(state: dict[str, Any]) -> bool:
    return state["state"] == "running" and (state["step"] or 0) > 0


def test_a_run_is_followed_requeued_cancelled_and_sent_back_again(login: LoginNode) -> None:
    job = login.launch("run")
    begun = login.wait_for("run", has_begun, "the first step")
    node = login.cluster.job(job)["NodeList"]
    assert (begun["job_id"], begun["slurm_state"], begun["nodes"]) == (job, "RUNNING", node)
    assert (begun["total_steps"], begun["restarts"], begun["ranks"]) == (200_000, 0, 1)
    assert begun["loss"] > 0 and begun["images_per_s"] > 0 and begun["seconds_left"] > 0

    shown = login.type("logs", "run", "--lines", "100000")  # it goes on all the time
    assert f"==> run/launch/{job}_0_log.out <==" in shown and "step 1/200000" in shown

    said = login.type("requeue", "run")
    assert said == f"run: job {job} was asked to save with all its ranks and to come back\n"
    pause = "SLURM's pause before a requeue, starts in about"  # told as soon as its scheduler has looked
    waiting = login.wait_for(
        "run", lambda state: state["state"] == "requeued" and state["why"].startswith(pause), "the requeue"
    )
    assert waiting["restarts"] == 1 and waiting["saved_step"] == waiting["step"] > 0
    login.cluster.hurry(job)
    login.wait_for("run", lambda state: has_begun(state) and state["step"] > waiting["step"], "new steps")

    watch = login.start("status", "run", "--watch", "--every", "0.5")
    assert "run: running" in (watch.stdout.readline() if watch.stdout else "")
    said = login.type("cancel", "run")
    cancelled = login.status("run")
    assert said == f"run: cancelled; saved after step {cancelled['saved_step']:,}\n"
    assert cancelled["state"] == "cancelled" and cancelled["saved_step"] > waiting["step"]
    lines, _ = watch.communicate(timeout=_PATIENCE_S)
    assert watch.returncode == 0
    assert lines.splitlines()[-1].startswith(f"run: cancelled (saved after step {cancelled['saved_step']:,})")
    stops = [
        event["step"]
        for event in read_events(login.folder / "run" / "events.jsonl")
        if event["kind"] == "stopped"
    ]
    assert stops == [waiting["step"], cancelled["step"]]
    assert login.type("cancel", "run") == "run: is cancelled already\n"

    again = login.type("requeue", "run")
    newer = login.job("run")
    assert newer != job and again == f"run: submitted again, as job {newer}\n"
    login.wait_for(
        "run", lambda state: has_begun(state) and state["step"] > cancelled["step"], "the resumed run's steps"
    )
    assert login.type("cancel", "--now", "run").startswith("run: cancelled; saved after step")


def test_a_job_that_waits_leaves_the_queue_at_once(login: LoginNode) -> None:
    job = login.launch("later", "extra.begin=now+1hour")
    waiting = login.status("later")
    assert waiting["state"] == "waiting" and "starts in about" in waiting["why"]
    assert login.type("requeue", "later").startswith(f"later: job {job} is in the queue already")
    assert login.type("cancel", "later") == "later: cancelled; before its first step\n"
    books = ["sacct", "-Xn", "-j", job, "-o", "State"]  # the controller may have forgotten the job by now
    login.cluster.wait_until(
        lambda: login.cluster.run(*books).strip().startswith("CANCELLED"), what="a cancelled job in the books"
    )
    table = login.type("status", ".")
    assert "later" in table and "cancelled" in table and "before its first step" in table


def test_a_job_that_slurm_has_forgotten_is_explained_by_its_accounts(login: LoginNode) -> None:
    """A script that fails before the program begins leaves no event: what SLURM wrote down is all there is."""
    job = login.job(BROKEN)
    login.cluster.wait_until(
        lambda: not login.cluster.job(job), what="the end of SLURM's memory", timeout_s=240
    )
    state = login.status(BROKEN)
    assert (state["state"], state["why"]) == ("failed", "SLURM: FAILED (exit code 3:0)")


def test_what_cannot_be_followed_is_a_message(login: LoginNode, tmp_path: Path) -> None:
    error = login.type("status", "nowhere", str(tmp_path), code=2)
    assert f"error: no run in 'nowhere' and '{tmp_path}': name a run folder" in error
    assert "is not a run folder" in login.type("logs", str(tmp_path), code=2)
