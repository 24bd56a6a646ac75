"""python -m launch.many.worker SEARCH RECIPE --out OUT --worker K: one trial after another, on all ranks of a job.

rank 0: next trial from the study -> word to the other ranks -> its own rank of the program, whose log it watches
others: wait for a word -> their rank of the same program -> say how it ended -> wait for the next word
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from configs.base import ConfigError
from configs.exit_code import run_main
from configs.load import load_config
from launch.many.config import SearchConfig, SweepConfig
from launch.many.grid import overrides_of
from launch.many.metric_tail import MetricTail
from launch.many.study import Study, Trial
from launch.many.words import Words
from launch.programs import program_command, program_environment
from launch.submission.request import load_recipe
from launch.supervise import FORWARDED, INTERRUPTED, STOPPED, Command, Outcome, run_together

PRUNE_SIGNAL = signal.SIGUSR1
"""Stops a trial and nothing else: SLURM says the end of a job with SIGUSR2 and SIGTERM."""
_COME_BACK = (69, 70)
"""A rank was lost, or hangs: the job is started again and goes on with the same trial."""
_MOST_FAILURES = 3
_WATCH_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker is given."""

    program: str
    recipe: str
    search: SearchConfig
    out: Path
    worker: int

    def folder(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.out / "trials" / f"{trial.number:04d}"

    def arguments(self, trial: Trial) -> list[str]:
        """Of the program that runs a trial."""
        name = {"tracking.run_name": f"{trial.number:04d} {' '.join(trial.overrides)}"}
        return [self.recipe, *trial.overrides, *overrides_of(name), "--out", str(self.folder(trial))]


def main(arguments: Sequence[str] | None = None) -> int:
    """One rank of a worker; returns what its job should end with."""
    parser = argparse.ArgumentParser(prog="python -m launch.many.worker", allow_abbrev=False)
    parser.add_argument("search", help="the sweep's file, with a search")
    parser.add_argument("recipe", help="recipe of every trial")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worker", type=int, default=0)
    given = parser.parse_args(arguments)
    config = load_config(SweepConfig, given.search).config
    if config.search is None:
        raise ConfigError(f"{given.search!r} has no 'search'")
    work = Work(
        program=config.program,
        recipe=given.recipe,
        search=config.search,
        out=given.out,
        worker=given.worker,
    )
    words = Words.of(given.out / "workers" / str(given.worker) / "words", os.environ)
    received = take_signals()
    if words.rank > 0:
        return _follow(work, words)
    code = _lead(work, Study(given.out, config.search), words, received)
    words.say_end(code)
    return code


def _lead(work: Work, study: Study, words: Words, received: list[int]) -> int:
    """Rank 0: runs trials until none is left, or the job has to end; returns the exit code."""
    num_failures = 0
    while not received and (trial := study.next(work.worker)) is not None:
        arguments = work.arguments(trial)
        mistake = _mistake(work, arguments)
        if mistake is not None:
            study.fail(trial, mistake)
            continue
        words.say_trial(arguments)
        watch = _Watch(study, trial, MetricTail(work.folder(trial), work.search.metric))
        outcome = watch.during(work.program, arguments, received)
        code = _first_hand(outcome.code, words.wait_for_others())
        if (code in (STOPPED, INTERRUPTED) and not watch.pruned) or code in _COME_BACK:
            return code
        is_good = _settle(study, trial, watch, code)
        num_failures = 0 if is_good else num_failures + 1
        if num_failures == _MOST_FAILURES:
            return code or 1
        received[:] = [number for number in (*received, *outcome.signals) if number != PRUNE_SIGNAL]
    return STOPPED if received else 0


def _settle(study: Study, trial: Trial, watch: _Watch, code: int) -> bool:
    """Tells the study how a trial ended; returns whether it could be run."""
    if watch.pruned and code in (STOPPED, INTERRUPTED):
        study.prune(trial)
        said = "stopped: worse than the median of the others"
    elif code != 0:
        said = f"failed with exit code {code}"
        study.fail(trial, said)
    elif watch.last_value is None:
        said = f"failed: its event log has no {watch.metric!r}"
        study.fail(trial, said)
    else:
        study.complete(trial, watch.last_value)
        said = f"{watch.metric} {watch.last_value:g}"
    _say(f"trial {trial.number} ({' '.join(trial.overrides)}): {said}")
    return (code == 0 and watch.last_value is not None) or watch.pruned


def _first_hand(own: int, others: Sequence[int]) -> int:
    """The exit code of the trial: where a rank only says that another was lost, the code of that other one."""
    told = [code for code in others if code not in (0, STOPPED, INTERRUPTED, *_COME_BACK)]
    return told[0] if own in (0, *_COME_BACK) and told else own


def _follow(work: Work, words: Words) -> int:
    """The other ranks: do what rank 0 says, until it says that it is over."""
    while (arguments := words.next_trial()) is not None:
        words.say_done(_run(work.program, arguments).code)
    return words.end_code


def _run(program: str, arguments: Sequence[str], received: list[int] | None = None) -> Outcome:
    command = Command(
        arguments=program_command(program, arguments), environment=program_environment(os.environ)
    )
    return run_together([command], received=received)


def _mistake(work: Work, arguments: Sequence[str]) -> str | None:
    """What is wrong with the settings of a trial; None for those that can be run."""
    try:
        load_recipe(work.program, arguments[0], arguments[1:-2])
    except ConfigError as error:
        _say(str(error))
        return str(error)
    return None


@dataclass(slots=True)
class _Watch:
    """Reads what a trial logs while it runs, tells the study, and stops the trial when the study says so."""

    study: Study
    trial: Trial
    tail: MetricTail
    pruned: bool = False
    last_value: float | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _problem: BaseException | None = None

    @property
    def metric(self) -> str:
        """What the trial is judged by."""
        return self.tail.metric

    def during(self, program: str, arguments: Sequence[str], received: list[int]) -> Outcome:
        """Runs the program and watches it; signals that were received just before are for the program."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            outcome = _run(program, arguments, received)
        finally:
            self._ended.set()
            thread.join()
        if self._problem is not None:
            raise self._problem
        return outcome

    def _watch(self) -> None:
        try:
            self._follow_log()
        except BaseException as problem:  # raised in the main thread, when the program has ended
            self._problem = problem

    def _follow_log(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(_WATCH_S)  # what was written until the end is read after it
            points = self.tail.read()
            if points:
                self.last_value = points[-1][1]
            if self.study.report(self.trial, points) and not is_last and not self.pruned:
                self.pruned = True
                os.kill(os.getpid(), PRUNE_SIGNAL)  # run_together passes it on


def take_signals() -> list[int]:
    """Collects what arrives between two trials; during one it is the program that gets it."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number != PRUNE_SIGNAL:
            received.append(number)

    for number in FORWARDED:
        signal.signal(number, note)
    return received


def _say(text: str) -> None:
    sys.stdout.write(f"search: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_main(main)
