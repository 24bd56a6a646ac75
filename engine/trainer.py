"""Trainer: the one loop that pretraining and fine-tuning share."""

from __future__ import annotations

import logging
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy
import torch

from data_pipeline.batch import Batch
from engine.bad_list import BadList
from engine.checkpoint import Checkpoint, CheckpointStore
from engine.errors import DivergenceError
from engine.evaluate import Evaluator, Scores
from engine.events import EventLog
from engine.meters import Meter
from engine.objective import Objective
from engine.preempt import StopSignal, exit_code
from engine.progress import Progress
from engine.timetable import Timetable
from engine.zero import Engine

log = logging.getLogger(__name__)

_MOST_SKIPPED = 10
"""Steps in a row that may fail to be finite before the run gives up."""


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
    """Trains from where the checkpoints say to the end of the timetable, or until a signal stops it."""

    def __init__(
        self,
        *,
        engine: Engine,
        objective: Objective,
        loader: Loader,
        timetable: Timetable,
        checkpoints: CheckpointStore,
        events: EventLog,
        progress: Progress,
        bad_lists: Sequence[BadList] = (),
        evaluator: Evaluator | None = None,
        seed: int = 0,
    ) -> None:
        self._engine = engine
        self._objective = objective
        self._loader = loader
        self._timetable = timetable
        self._checkpoints = checkpoints
        self._events = events
        self._progress = progress
        self._evaluator = evaluator
        self._bad_lists = bad_lists
        self._seed = seed
        self._meter = Meter(engine.world, global_batch=timetable.global_batch)
        self._step = 0
        self._evaluated_step = 0
        self._scores: Scores | None = None

    def fit(self, stop: StopSignal) -> Outcome:
        """Resumes, trains, evaluates and saves; after an error no collective is issued any more."""
        with self._failures_on_record():
            self._resume_or_start()
            timetable, stopped_by = self._timetable, None
            batches = iter(self._loader)
            while self._step < timetable.total_steps and stopped_by is None:
                with self._meter.waiting_for_data():
                    batch = next(batches)
                self._train_step(batch)
                if timetable.is_due(timetable.log_every, self._step):
                    self._report()
                stopped_by = stop.agree(self._engine.world)
                if stopped_by is None and timetable.is_due(timetable.evaluate_every, self._step):
                    self._evaluate()
                if stopped_by is not None or timetable.is_due(timetable.checkpoint_every, self._step):
                    self._save()
        self._record_end(stopped_by)
        return Outcome(step=self._step, stopped_by=stopped_by, scores=self._scores)

    def _train_step(self, batch: Batch) -> None:
        engine = self._engine
        micro_batches = batch.split(engine.micro_batch)
        for index, micro_batch in enumerate(micro_batches):
            loss = self._objective(engine.model, micro_batch.to(engine.world.device))
            engine.accumulate(loss.total, last=index == len(micro_batches) - 1)
            self._meter.add(loss)
        engine.step(self._step, learning_rate=self._timetable.learning_rate(self._step))
        self._loader.advance()
        self._step += 1
        self._meter.step_done()
        self._progress.advance(self._step)

    @contextmanager
    def _failures_on_record(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self._events.append("stopped", step=self._step, reason="SIGINT twice, not saved")
            raise
        except BaseException as error:
            self._events.append("failed", error=f"{type(error).__name__}: {error}", step=self._step)
            raise
        finally:
            self._events.flush()
            self._progress.end()

    def _record_end(self, stopped_by: signal.Signals | None) -> None:
        if stopped_by is None:
            self._events.append("finished", step=self._step)
        else:
            self._events.append("stopped", step=self._step, reason=stopped_by.name)
            self._progress.note(
                f"stopped by {stopped_by.name} after step {self._step}; saved, run it again to resume"
            )
        self._events.flush()

    def _report(self) -> None:
        """One point in the event log. NOTE: the only wait for the device within the steps."""
        health = self._engine.health()
        values = self._meter.report()
        values["train/lr"] = self._timetable.learning_rate(self._step - 1)
        values["train/grad_norm"] = health.grad_norm
        values["train/skipped_steps"] = float(health.skipped)
        values |= {f"data/passes/{corpus}": passes for corpus, passes in self._loader.passes.items()}
        images = self._step * self._timetable.global_batch
        self._events.append("metrics", step=self._step, images=images, values=values)
        self._progress.report(self._step, values)
        self._list_bad_samples()
        if health.skipped_in_a_row >= _MOST_SKIPPED:
            raise DivergenceError(
                f"loss or gradients were not finite for {health.skipped_in_a_row} steps in a row, up to step "
                f"{self._step}; the weights are those of before. Lower optim.lr, lengthen schedule.warmup or set "
                "optim.clip_grad, and look at the images of these steps"
            )

    def _evaluate(self) -> None:
        if self._evaluator is not None:
            with self._meter.paused(), self._engine.evaluation() as model:
                self._scores = self._evaluator.scores(model)
            self._events.append("evaluation", step=self._step, values=self._scores.values())
            self._progress.note(
                f"step {self._step}: top-1 {self._scores.top1:.2f} %  top-5 {self._scores.top5:.2f} %  "
                f"calibration error {self._scores.ece:.4f}  loss {self._scores.loss:.4f}"
            )
            self._list_bad_samples()
        self._evaluated_step = self._step

    def _save(self) -> None:
        with self._meter.paused():
            shared = {
                "loader": dict(self._loader.state_dict()),
                "evaluated_step": self._evaluated_step,
                "scores": None if self._scores is None else asdict(self._scores),
            }
            own = {"meter": self._meter.state_dict()}
            path = self._checkpoints.save(self._step, self._engine, shared=shared, own=own)
            self._list_bad_samples()
        self._events.append("checkpoint", step=self._step, path=str(path))
        self._events.flush()

    def _list_bad_samples(self) -> None:
        """Lists the images that any rank could not use, and says how many; all ranks stop if there are too many."""
        for bad_list in self._bad_lists:
            if found := bad_list.agree(self._engine.world):
                reasons = ", ".join(
                    f"{count} {why}" for why, count in Counter(s.reason for s in found).items()
                )
                self._progress.note(
                    f"{len(found)} images could not be used ({reasons}), {len(bad_list)} so far; "
                    f"listed in {bad_list.path}"
                )

    def _resume_or_start(self) -> None:
        _seed_everything(self._seed, self._engine.world.rank)
        checkpoint = self._checkpoints.load_newest(self._engine)
        if checkpoint is not None:
            self._resume(checkpoint)
        self._progress.begin(self._step, self._timetable.total_steps)
        if checkpoint is not None:
            self._evaluate_if_missed()

    def _resume(self, checkpoint: Checkpoint) -> None:
        self._step = checkpoint.step
        self._loader.load_state_dict(checkpoint.shared["loader"])
        self._evaluated_step = int(checkpoint.shared["evaluated_step"])
        scores = checkpoint.shared["scores"]
        self._scores = None if scores is None else Scores(**scores)
        if checkpoint.own is not None:
            self._meter.load_state_dict(checkpoint.own["meter"])
        self._events.append("resumed", step=self._step)
        self._progress.note(f"resuming after step {self._step}")

    def _evaluate_if_missed(self) -> None:
        """A stop at a step whose evaluation was due saves first and leaves the evaluation to the next start."""
        due = self._timetable.is_due(self._timetable.evaluate_every, self._step)
        if due and self._evaluated_step != self._step:
            self._evaluate()


def _seed_everything(seed: int, rank: int) -> None:
    """Different draws (stochastic depth, dropout) on each rank, the same on each start."""
    mixed = (seed * 1_000_003 + rank) % 2**32
    random.seed(mixed)
    numpy.random.seed(mixed)
    torch.manual_seed(mixed)
