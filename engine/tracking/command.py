"""Tracking: a process of its own that follows a run's event log into MLflow, and into TensorBoard's files if wanted.

python -m engine.tracking.command RUN_DIR ... [--watch]
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.base import ConfigError
from configs.exit_code import USAGE, run_main
from configs.load import packaged_root
from engine.tracking.follower import LOCK_NAME, STATE_NAME, Follower, Sink, SinkError, follow, held
from engine.tracking.log_reader import LOG_NAME, Event, newest_run_event
from engine.tracking.mlflow_run import MlflowRun
from engine.tracking.tensorboard import TensorBoardFiles

OFF = "off"
GRACE_S = 60.0
"""How long a follower keeps trying after training ended; `mirada sync` sends what is left then."""

_TIMEOUT_S = 5
_WATCH_S = 2.0

log = logging.getLogger(__name__)


def start_follower(run_dir: Path) -> subprocess.Popen[bytes] | None:
    """Starts the follower of this process's run, once the "run" event is written; None where tracking is off.

    It ends by itself: when the run's last event is sent, or soon after this process is gone; nobody waits.
    """
    event = newest_run_event(run_dir)
    if event is not None and not _sinks(event, run_dir):
        return None
    python_path = [str(packaged_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "engine.tracking.command", str(run_dir.resolve())]
    command += ["--follow", "--parent", str(os.getpid())]
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    with (run_dir / "logs" / "tracking.log").open("ab") as output:
        # A session of its own: Ctrl-C ends training, and the follower lives to tell the server so.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )


def sync(run_dir: Path) -> int:
    """Sends what the server lacks and returns the number of events; ConfigError when it cannot be reached.

    A run that nobody trains any more, and that could not say so itself, is marked as killed.
    """
    with held(run_dir / LOCK_NAME, wait=False) as alone:
        if not alone:
            raise ConfigError(f"{run_dir} is being followed right now, see {run_dir}/logs/tracking.log")
        num_events = 0
        for follower in _followers(run_dir):
            try:
                num_events = follower.send_all()
                if follower.is_abandoned():
                    follower.mark_vanished()
            except SinkError as failure:
                raise ConfigError(
                    f"{failure}\n  the events stay in {run_dir}: start the server, or set MLFLOW_TRACKING_URI or "
                    "the recipe's tracking.uri, then run the same command again"
                ) from failure
        return num_events


def follow_run(run_dir: Path, *, parent: int | None = None, grace_s: float = GRACE_S) -> bool:
    """Sends events until the run has ended or process `parent` is gone; False if the server stays away.

    Each sink has a thread of its own, so that a server that hangs does not hold TensorBoard's files up.
    """
    with held(run_dir / LOCK_NAME, wait=True):  # a follower from before a restart may still be sending
        return _follow_all(_followers(run_dir), parent=parent, grace_s=grace_s)


def watch(run_dirs: Sequence[Path]) -> None:
    """Sends the events of runs as they appear, over all their restarts, until each is finished; a login node's part.

    Runs may begin later; a server that is away is tried again for ever. Raises ConfigError for a missing folder.
    """
    missing = [repr(str(run_dir)) for run_dir in run_dirs if not run_dir.is_dir()]
    if missing:
        raise ConfigError(
            f"no folder {' and '.join(missing)}: name the run folder, which the submission has made"
        )
    _run_side_by_side([functools.partial(_watch_run, run_dir) for run_dir in run_dirs])


def tracking_uri(event: Event, run_dir: Path) -> str:
    """The recipe's tracking.uri, else $MLFLOW_TRACKING_URI, else a database beside the run folder."""
    configured = event.get("config", {}).get("tracking.uri")
    database = run_dir.resolve().parent / "mlflow.db"
    return str(configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: parse, send, exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.tracking.command",
        description="Send a run's event log to MLflow and TensorBoard.",
    )
    parser.add_argument(
        "run_dirs", metavar="RUN_DIR", type=Path, nargs="+", help="run folder, the one with events.jsonl"
    )
    parser.add_argument("--follow", action="store_true", help="keep sending until the run has ended")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="keep sending, over all restarts, until each run is finished; they may begin later",
    )
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, help="seconds to keep trying after that (%(default)g)"
    )
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    quiet_mlflow()
    if options.parent is not None:
        _behave_as_child()
    if options.watch:
        watch(options.run_dirs)
        return 0
    return max(_send(run_dir, options) for run_dir in options.run_dirs)


def _send(run_dir: Path, options: argparse.Namespace) -> int:
    """Sends what there is of one run, or with --follow what comes; returns the exit code."""
    event = newest_run_event(run_dir)
    if event is not None and not _sinks(event, run_dir):
        sys.stdout.write(f"{run_dir}: tracking.uri is 'off', nothing is sent\n")
        return 0
    if options.follow:
        return 0 if follow_run(run_dir, parent=options.parent, grace_s=options.grace) else USAGE
    sys.stdout.write(f"{run_dir}: {sync(run_dir)} new events sent\n")
    return 0


def _watch_run(run_dir: Path) -> None:
    log_file = run_dir / LOG_NAME
    while True:
        while newest_run_event(run_dir) is None:
            time.sleep(_WATCH_S)  # it waits in the queue
        followers = _followers(run_dir)
        if not followers:
            sys.stdout.write(f"{run_dir}: tracking.uri is 'off', nothing is sent\n")
            return
        seen = log_file.stat()
        ended = _follow_all(followers, parent=None, grace_s=math.inf)
        if ended and all(follower.is_complete() for follower in followers):
            sys.stdout.write(f"{run_dir}: finished, everything is sent\n")
            return
        while log_file.is_file() and _is_same(log_file.stat(), seen):
            time.sleep(_WATCH_S)  # stopped or failed: the next start writes on


def _is_same(now: os.stat_result, then: os.stat_result) -> bool:
    return (now.st_ino, now.st_size) == (then.st_ino, then.st_size)


def _follow_all(followers: Sequence[Follower], *, parent: int | None, grace_s: float) -> bool:
    """Follows a log to each of its sinks until the run has ended; False if one of them stayed away."""
    done = [False] * len(followers)

    def run(index: int) -> None:
        done[index] = follow(followers[index], parent=parent, grace_s=grace_s)

    _run_side_by_side([functools.partial(run, index) for index in range(len(followers))])
    return all(done)


def _run_side_by_side(functions: Sequence[Callable[[], None]]) -> None:
    """Returns when all have; Ctrl-C does not wait for them."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _sinks(event: Event, run_dir: Path) -> dict[str, Callable[[Event], Sink]]:
    """How to reach each sink that the run wants, by the file that remembers how far it is.

    MLflow comes last: TensorBoard's files are complete whatever becomes of the server.
    """
    sinks: dict[str, Callable[[Event], Sink]] = {}
    if event.get("config", {}).get("tracking.tensorboard"):
        sinks["tensorboard.json"] = lambda start: TensorBoardFiles(run_dir)
    if tracking_uri(event, run_dir) != OFF:
        sinks[STATE_NAME] = lambda start: MlflowRun(start, run_dir, tracking_uri(start, run_dir))
    return sinks


def _followers(run_dir: Path) -> list[Follower]:
    sinks = _sinks(newest_run_event(run_dir) or {}, run_dir)
    return [Follower(run_dir, connect, state_name=name) for name, connect in sinks.items()]


def quiet_mlflow() -> None:
    """No telemetry, no chatter, short timeouts: to be called before mlflow is imported."""
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _behave_as_child() -> None:
    """Yields the processor to training, and outlives the signals that are meant for it."""
    os.nice(10)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    run_main(main)
