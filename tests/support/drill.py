"""Drill: a small training run on a real SLURM by `mirada launch`, and what a test does to it while it trains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.load import packaged_root
from launch.submission.record import attempt_folder, read_submission
from tests.support.slurm import SlurmCluster

NUM_STEPS = 40
RECIPE = (
    "configs/smoke/pretrain_vit.yaml",
    f"train.duration={NUM_STEPS} steps",
    "train.evaluate_every=20 steps",
    "train.checkpoint_every=20 steps",
    "train.log_every=1",
    "tracking.system_metrics=false",
)
_PATIENCE_S = 600.0
"""For what takes a start of the ranks or two: importing PyTorch and DeepSpeed on a machine that has much else to do."""
_POLL_S = 0.05
_ASK_S = 1.0
_ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """A run that was submitted."""

    cluster: SlurmCluster
    out: Path
    job_id: str

    def events(self, kind: str) -> list[dict[str, Any]]:
        """All events of a kind so far."""
        return [event for event in self._all_events() if event["kind"] == kind]

    def losses(self) -> dict[int, float]:
        """The loss of each step; what was said of a step later replaces what was said before."""
        return {event["step"]: event["values"]["train/loss"] for event in self.events("metrics")}

    def weights(self) -> bytes:
        """What the finished run released."""
        return (self.out / "release" / "model.safetensors").read_bytes()

    def wait_for_step(self, step: int, *, start: int = 0) -> None:
        """Returns when the run has done `step` steps in its start number `start`, counted from 0."""
        self._wait(lambda: self._has_done(step, start), f"step {step} of start {start}")

    def wait_for_requeue(self, restarts: int) -> None:
        """Returns when the job waits in the queue again, the nodes being free."""
        self._wait(lambda: self._is_in_queue(restarts), f"requeue {restarts} of job {self.job_id}")

    def wait_for_end(self) -> str:
        """Returns the job's last state."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        return self.cluster.wait_for_state(self.job_id, *ends, timeout_s=_PATIENCE_S)["JobState"]

    def finish(self) -> None:
        """Waits for the end, which has to be a good one."""
        state = self.wait_for_end()
        assert state == "COMPLETED", f"{state}\n{self.log()}"

    def start_again(self) -> None:
        """Spares the requeued job SLURM's two minutes."""
        self.cluster.hurry(self.job_id)

    def nodes(self) -> list[str]:
        """Where the job runs, or ran last."""
        listed = self.cluster.job(self.job_id)["NodeList"]
        return self.cluster.run("scontrol", "show", "hostnames", listed).split()

    def verdict(self, restart: int) -> dict[str, Any]:
        """What was decided after one of its starts."""
        file = attempt_folder(self.out, self.job_id, restart) / "verdict.json"
        return dict(json.loads(file.read_text()))

    def ranks(self) -> dict[int, int]:
        """Process of each rank's program."""
        return dict(self._ranks())

    def interrupt(
        self, act: Callable[[], object], *, by: signal.Signals, after_step: int = 5, start: int = 0
    ) -> None:
        """Does something to the job that sends the ranks a signal; the step they are in lasts until it arrives."""
        self.wait_for_step(after_step, start=start)
        pids = list(self.freeze().values())
        assert pids, f"no rank is left to be interrupted\n{self.log()}"
        act()
        self._wait(lambda: all(_has_got(pid, by) for pid in pids), f"{by.name} for all ranks")
        self.thaw()

    def freeze(self) -> dict[int, int]:
        """Makes the step that the ranks are in last until `thaw`; returns the ranks' processes."""
        ranks = self.ranks()
        for pid in ranks.values():
            os.kill(pid, signal.SIGSTOP)
        return ranks

    def thaw(self) -> None:
        """Lets the ranks go on. SLURM sends SIGCONT along with some signals, so they may have done so already."""
        for pid in self.ranks().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def log(self) -> str:
        """What the job printed, and what was decided: for a failed assertion."""
        texts = [path.read_text(errors="replace")[-3000:] for path in (self.out / "launch").glob("*log.out")]
        return "\n---\n".join(texts)

    def _ranks(self) -> Iterator[tuple[int, int]]:
        mine = f"SLURM_JOB_ID={self.job_id}".encode()
        for pid, environment in self.cluster.daemons.processes():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if mine in environment and b"pretrain" in command:
                    yield next(int(v[5:]) for v in environment if v.startswith(b"RANK=")), pid

    def _is_in_queue(self, restarts: int) -> bool:
        known = self.cluster.job(self.job_id)
        return known.get("JobState") == "PENDING" and int(known.get("Restarts", 0)) >= restarts

    def _has_done(self, step: int, start: int) -> bool:
        events = self._all_events()
        begins = [index for index, event in enumerate(events) if event["kind"] == "run"]
        since = events[begins[start] :] if len(begins) > start else []
        return any(event["kind"] == "metrics" and event["step"] >= step for event in since)

    def _all_events(self) -> list[dict[str, Any]]:
        log = self.out / "events.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """NOTE: a busy controller may answer a minute late, and the run does not wait for it: it is asked aside."""
        end = time.monotonic() + _PATIENCE_S
        controller = ThreadPoolExecutor(max_workers=1)
        asked, answer = time.monotonic(), controller.submit(self.cluster.job, self.job_id)
        try:
            while not condition():
                if answer.done() and time.monotonic() > asked + _ASK_S:
                    state = answer.result().get("JobState")
                    assert state in _ALIVE or condition(), f"{state}: {what}\n{self.log()}"
                    asked, answer = time.monotonic(), controller.submit(self.cluster.job, self.job_id)
                assert time.monotonic() < end, f"{what}: not within {_PATIENCE_S} s\n{self.log()}"
                time.sleep(_POLL_S)
        finally:
            controller.shutdown(wait=False, cancel_futures=True)


def launch_drill(
    cluster: SlurmCluster, folder: Path, *overrides: str, recipe: tuple[str, ...] = RECIPE, **keys: Any
) -> Drill:
    """Submits a run on this cluster; `keys` are those of the cluster file. Two ranks on one node if they do not say."""
    file = folder / "cluster.yaml"
    folder.mkdir()
    settings = {"kind": "slurm", "partition": "main", "tasks_per_node": 2, "time": "20 min", "grace_s": 30}
    file.write_text(yaml.safe_dump({**settings, **keys}))
    out = folder / "run"
    tracking = [] if any(text.startswith("tracking.uri=") for text in overrides) else ["tracking.uri=off"]
    cluster.run(
        sys.executable, "-m", "launch.cli", "launch", "pretrain", *recipe, *tracking, *overrides,
        "--cluster", str(file), "--out", str(out),
        timeout_s=_PATIENCE_S, PYTHONPATH=str(packaged_root()), PYTHONSAFEPATH="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    submission = read_submission(out)
    assert submission is not None
    return Drill(cluster=cluster, out=out, job_id=submission.job_ids[0])


def _has_got(pid: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process that cannot take it, or has ended it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("ShdPnd:", "SigPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in pending)
