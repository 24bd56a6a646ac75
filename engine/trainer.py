"""Trainer: the one loop that pretraining and fine-tuning share."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy
import torch

from data_pipeline.batch import Batch
from engine.journal import Journal
from engine.objective import Objective, look_ahead
from engine.results.evaluate import Evaluator, Scores
from engine.saving.checkpoint import Checkpoint, CheckpointStore
from engine.sharding.zero import Engine, Health
from engine.survival.preempt import Stopped, StopSignal, exit_code
from engine.survival.safeguards import Safeguards
from engine.survival.watchdog import COMMUNICATING
from engine.timetable import Timetable
from models.progressive import AttentionSwitches


class Loader(Protocol):
    """Yields this rank's share of consecutive global batches without end, and knows its position."""

    def __iter__(self) -> Iterator[Batch]: ...

    def advance(self) -> None: ...

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...

    @property
    def passes(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call of `fit` ended."""

    step: int
    stopped_by: signal.Signals | None
    """None when the run is finished."""
    scores: Scores | None
    """Of the last evaluation of the run, if there was one."""

    @property
    def exit_code(self) -> int:
        """0 when finished; else 75 (130 after Ctrl-C): saved, run the same command again."""
        return 0 if self.stopped_by is None else exit_code(self.stopped_by)


class Trainer:
    """Trains from where the checkpoints say to the end of the timetable, or until a signal stops it.

    `follow` is told the number of each step (from 0) before it, and before an evaluation, for what depends on it.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        objective: Objective,
        loader: Loader,
        timetable: Timetable,
        checkpoints: CheckpointStore,
        journal: Journal,
        safeguards: Safeguards,
        evaluator: Evaluator | None = None,
        follow: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._engine = engine
        self._objective = objective
        self._loader = loader
        self._timetable = timetable
        self._checkpoints = checkpoints
        self._journal = journal
        self._meter = journal.meter
        self._watchdog = safeguards.watchdog
        self._rollback = safeguards.rollback
        self._evaluator = evaluator
        self._follow = follow
        self._switches: AttentionSwitches | None = None
        if timetable.activation is not None:
            self._switches = AttentionSwitches(engine.module, timetable.activation)
        self._batches: Iterator[Batch] = iter(())
        self._step = 0
        self._batch_index = 0  # of the next global batch; ahead of the step by the batches that were left out
        self._owes_checkpoint = False
        self._evaluated_step = 0
        self._scores: Scores | None = None

    def fit(self, stop: StopSignal) -> Outcome:
        """Resumes, trains, evaluates and saves; after an error no collective is issued any more."""
        stopped_by: signal.Signals | None = None
        with (
            self._journal.failures_on_record(self._steps_done),
            self._watchdog.guarding(self._record_failure),
        ):
            self._resume_or_start()
            while self._step < self._timetable.total_steps and stopped_by is None:
                self._train_step(self._next_batch())
                stopped_by = self._after_step(stop)
            self._watchdog.beat(self._step, "saving")
            self._settle(wait=True)
        self._journal.ended(self._step, stopped_by)
        return Outcome(step=self._step, stopped_by=stopped_by, scores=self._scores)

    def _next_batch(self) -> Batch:
        """The next batch that is not left out; it is drawn and passed over, so that the loader's order stays."""
        self._watchdog.beat(self._step, "waiting for data")
        with self._meter.waiting_for_data():
            while self._rollback.leaves_out(self._batch_index):
                next(self._batches)
                self._loader.advance()
                self._batch_index += 1
            return next(self._batches)

    def _train_step(self, batch: Batch) -> None:
        engine = self._engine
        self._be_at_step()
        micro_batches = batch.split(engine.micro_batch)
        self._watchdog.beat(self._step, "in forward")
        with self._meter.computing():
            look_ahead(self._objective, engine.model, micro_batches)
        for index, micro_batch in enumerate(micro_batches):
            self._watchdog.beat(self._step, "in forward")
            with self._meter.computing():
                loss = self._objective(engine.model, micro_batch.to(engine.world.device))
            self._watchdog.beat(self._step, COMMUNICATING)
            engine.accumulate(loss.total, last=index == len(micro_batches) - 1)
            self._meter.add(loss)
        engine.step(self._step, learning_rate=self._timetable.learning_rate(self._step))
        self._rollback.trained_on(batch, self._batch_index)
        self._loader.advance()
        self._step += 1
        self._batch_index += 1
        self._meter.step_done()
        self._journal.advance(self._step)

    def _after_step(self, stop: StopSignal) -> signal.Signals | None:
        """What is due at this step boundary: report, rollback, evaluation, checkpoint; and the signal to stop."""
        timetable, step, world = self._timetable, self._step, self._engine.world
        reports = timetable.is_due(timetable.log_every, step)
        saves = self._owes_checkpoint or timetable.is_due(timetable.checkpoint_every, step)
        num_nonfinite = 0
        if reports or saves:
            health = self._engine.health()
            num_nonfinite = health.skipped_in_a_row
            if reports:
                self._report(health)
            if self._rollback.is_due(num_nonfinite):
                self._roll_back()
                return None
        self._settle(wait=False)
        stopped_by = stop.agree(world)
        if stopped_by is None and timetable.is_due(timetable.evaluate_every, step):
            self._evaluate()
            stopped_by = stop.agree(world)
        # What a rollback goes back to must be good: a checkpoint that is due waits for the next finite step.
        self._owes_checkpoint = saves and num_nonfinite > 0 and step < timetable.total_steps
        if stopped_by is not None or (saves and not self._owes_checkpoint):
            self._save()
        return stopped_by

    def _report(self, health: Health) -> None:
        """One point in the event log. NOTE: with `health` the only wait for the device within the steps."""
        values = self._meter.report()
        values["train/lr"] = self._timetable.learning_rate(self._step - 1)
        values["train/grad_norm"] = health.grad_norm
        values["train/skipped_steps"] = float(health.skipped)
        values |= {f"data/passes/{corpus}": passes for corpus, passes in self._loader.passes.items()}
        self._journal.metrics(self._step, values, images=self._step * self._timetable.global_batch)
        self._journal.list_bad_samples(self._engine.world)

    def _evaluate(self) -> None:
        """Scores, unless a signal comes first: then the evaluation is left to the next start."""
        evaluator = self._evaluator
        if evaluator is not None:
            also_raw = self._engine.has_average and evaluator.scores_raw
            try:
                scores = self._score(evaluator)
                raw_scores = self._score(evaluator, raw=True) if also_raw else None
            except Stopped:
                return
            self._scores = scores
            self._journal.evaluated(self._step, scores, raw_scores=raw_scores)
            self._journal.list_bad_samples(self._engine.world)
        self._evaluated_step = self._step

    def _score(self, evaluator: Evaluator, *, raw: bool = False) -> Scores:
        self._watchdog.beat(self._step, "evaluating")
        self._be_at_step()
        with self._meter.paused(), self._engine.evaluation(raw=raw) as model:
            return evaluator.scores(model)

    def _be_at_step(self) -> None:
        """What is on at this step, and nothing else, decides: so a run that was interrupted computes the same."""
        if self._switches is not None:
            self._switches.follow(self._step)
        self._follow(self._step)

    def _save(self) -> None:
        self._watchdog.beat(self._step, "saving")
        with self._meter.paused():
            shared = {
                "loader": dict(self._loader.state_dict()),
                "batch_index": self._batch_index,
                "evaluated_step": self._evaluated_step,
                "scores": None if self._scores is None else asdict(self._scores),
            }
            own = {"meter": self._meter.state_dict()}
            self._checkpoints.save(self._step, self._engine, shared=shared, own=own)
            self._journal.list_bad_samples(self._engine.world)

    def _settle(self, *, wait: bool) -> None:
        """Says what became of the saves, which are written in the background: of those that ended, or of all."""
        while (settled := self._checkpoints.settle(wait=wait)) is not None:
            self._journal.settled(settled)

    def _resume_or_start(self) -> None:
        self._engine.on_progress = lambda: self._watchdog.beat(self._step, "converting a checkpoint")
        checkpoint = self._checkpoints.load_newest(self._engine)
        if checkpoint is not None:
            self._go_on_from(checkpoint)
            self._journal.resumed(self._step)
        self._batches = iter(self._loader)
        self._journal.begin(self._step, self._timetable.total_steps)
        if checkpoint is not None:
            self._evaluate_if_missed()
        elif self._evaluator is not None and self._evaluator.scores_start:
            self._evaluate()

    def _roll_back(self) -> None:
        """Back to the last checkpoint, all ranks together; what was not finite since is left out from now on."""
        self._watchdog.beat(self._step, "rolling back")
        with self._meter.paused():
            self._settle(wait=True)
            window = self._rollback.leave_out_recent(step=self._step)
            checkpoint = self._checkpoints.load_newest(self._engine)
        if checkpoint is None:
            raise self._rollback.nothing_to_go_back_to(window)
        former_step = self._step
        self._go_on_from(checkpoint)
        self._batches = iter(self._loader)
        self._owes_checkpoint = False
        self._journal.rolled_back(former_step, self._step, window, self._rollback.path)

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        shared = checkpoint.shared
        self._step = checkpoint.step
        self._batch_index = int(shared["batch_index"])
        self._loader.load_state_dict(shared["loader"])
        self._evaluated_step = int(shared["evaluated_step"])
        self._scores = None if shared["scores"] is None else Scores.read(shared["scores"])
        self._meter.load_state_dict(
            {"sums": {}, "steps": 0} if checkpoint.own is None else checkpoint.own["meter"]
        )

    def _evaluate_if_missed(self) -> None:
        """A stop at a step whose evaluation was due saves first and leaves the evaluation to the next start."""
        due = self._timetable.is_due(self._timetable.evaluate_every, self._step)
        if due and self._evaluated_step != self._step:
            self._evaluate()

    def _steps_done(self) -> int:
        return self._step

    def _record_failure(self, reason: str) -> None:
        self._journal.failed(reason, step=self._step)


def seed_ranks(seed: int, rank: int) -> None:
    """Different draws (stochastic depth, dropout) on each rank, the same on each start; just before training."""
    mixed = (seed * 1_000_003 + rank) % 2**32
    random.seed(mixed)
    numpy.random.seed(mixed)
    torch.manual_seed(mixed)
