"""Study: the trials of a search, in a file that workers on many nodes share; the only importer of Optuna.

OUT/study.log is Optuna's journal: appended to under a lock that NFS keeps too, read by every worker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from launch.many.config import RangeConfig, SearchConfig
from launch.many.grid import overrides_of

_JOURNAL = "study.log"
_TABLE = "trials.json"
_WORKER = "worker"
_SEED_STEP = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a search, as its worker sees it."""

    number: int
    settings: Mapping[str, Any]
    """What was drawn."""
    reported: frozenset[int]
    """Steps whose value the study has."""

    @property
    def overrides(self) -> list[str]:
        """What was drawn, as overrides of the recipe."""
        return overrides_of(self.settings)


class Study:
    """Gives each worker its next trial, and hears how it goes; any number of processes may do so at once."""

    def __init__(self, out: Path, config: SearchConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._out = out
        self._config = config
        turn = out / f"{_JOURNAL}.turn"
        turn.touch()  # the lock is a link to it, whose age tells one that a killed process has left
        self._lock = JournalFileSymlinkLock(str(turn))
        with self._turn():
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(out / _JOURNAL))),
                study_name=out.name,
                direction=config.direction,
                pruner=_pruner(config),
                load_if_exists=True,
            )

    def next(self, worker: int) -> Trial | None:
        """The trial that this worker was interrupted in, else a new one; None when all have been given out.

        What is drawn depends on the seed, the number of the trial and the values known then, not on who asks.
        """
        with self._turn():
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                is_ours = trial.user_attrs.get(_WORKER, 0) % self._config.workers == worker
                if trial.state == TrialState.RUNNING and is_ours:
                    return _trial(trial)
            if len(trials) >= self._config.trials:
                return None
            self._study.sampler = _sampler(self._config, seed=self._config.seed + _SEED_STEP * len(trials))
            asked = self._study.ask()
            asked.set_user_attr(_WORKER, worker)
            for key, space in self._config.space.items():
                _draw(asked, key, space)
            return _trial(self._study.get_trials(deepcopy=False)[asked.number])

    def report(self, trial: Trial, points: list[tuple[int, float]]) -> bool:
        """Takes in values by step; True when going on would be in vain. Steps that come again change nothing."""
        live = self._live(trial)
        known = {*trial.reported, *self._frozen(trial).intermediate_values}
        for step, value in points:
            if step not in known:
                known.add(step)
                live.report(value, step)
                if live.should_prune():
                    return True
        return False

    def complete(self, trial: Trial, value: float) -> None:
        """It ran to its end, with this value."""
        self._tell(trial, TrialState.COMPLETE, value)

    def prune(self, trial: Trial) -> None:
        """It was stopped, as `report` advised."""
        self._tell(trial, TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str) -> None:
        """It could not be run."""
        self._live(trial).set_user_attr("failure", reason)
        self._tell(trial, TrialState.FAIL)

    def best(self) -> Trial | None:
        """The best of those that ran to their end."""
        ended = [t for t in self._study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        return _trial(self._study.best_trial) if ended else None

    def rows(self) -> list[dict[str, Any]]:
        """Every trial in order: what was drawn, how it stands, what it is worth, the last step that is known."""
        return [_row(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _tell(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        self._study.tell(trial.number, value, state=state)
        with self._turn():
            aside = self._out / f".{_TABLE}.{os.getpid()}"
            aside.write_text(json.dumps(self.rows(), indent=1) + "\n")
            aside.replace(self._out / _TABLE)

    def _live(self, trial: Trial) -> optuna.Trial:
        return optuna.Trial(self._study, self._frozen(trial)._trial_id)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One worker at a time: counting trials and asking for one more belong together."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()


def _pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    if config.prune is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=config.prune.startup_trials, n_warmup_steps=config.prune.warmup_steps
    )


def _sampler(config: SearchConfig, *, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # constant_liar: trials of other workers that still run keep a worker away from where they are.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=config.workers > 1)


def _draw(trial: optuna.Trial, key: str, space: RangeConfig | list[Any]) -> None:
    if isinstance(space, list):
        trial.suggest_categorical(key, [json.dumps(value) for value in space])
    elif space.is_whole:
        trial.suggest_int(key, int(space.low), int(space.high), step=int(space.step or 1), log=space.log)
    else:
        trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)


def _trial(trial: FrozenTrial) -> Trial:
    return Trial(
        number=trial.number, settings=_settings(trial), reported=frozenset(trial.intermediate_values)
    )


def _settings(trial: FrozenTrial) -> dict[str, Any]:
    """What was drawn; a choice is kept as JSON, since Optuna takes no lists."""
    return {
        key: json.loads(value) if isinstance(value, str) else value for key, value in trial.params.items()
    }


def _row(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "settings": _settings(trial),
        "last_step": trial.last_step,
        "worker": trial.user_attrs.get(_WORKER),
        "failure": trial.user_attrs.get("failure"),
    }
