"""Study: the trials of a search, in a file that workers on many nodes share; the only importer of Optuna.

OUT/study.log is Optuna's journal: appended to under a lock that NFS keeps too, read by every worker.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
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
_REFUSED = "refused"
_MOST_DRAWS = 16
"""So often the sampler may draw what is no member of the space, or was drawn before, until one is taken for it."""


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
    """Gives each worker its next trial, and hears how it goes; any number of processes may do so at once.

    With `members`, settings of which are all that may be tried, each of them is a trial at most once.
    """

    def __init__(
        self, out: Path, config: SearchConfig, *, members: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._out = out
        self._config = config
        self._members = None if members is None else {_key(settings): settings for settings in members}
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
            for trial in self._taken():
                is_ours = trial.user_attrs.get(_WORKER, 0) % self._config.workers == worker
                if trial.state == TrialState.RUNNING and is_ours and self._is_member(trial):
                    return _trial(trial)
            given_out = self._given_out()
            if len(given_out) >= self._num_trials():
                return None
            for _ in range(_MOST_DRAWS if self._members is not None else 1):
                drawn = self._draw(worker)
                refusal = self._refusal(drawn, given_out)
                if refusal is None:
                    return _trial(drawn)
                self._refuse(drawn, refusal)
            self._study.enqueue_trial(self._untried(given_out))
            return _trial(self._draw(worker))

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
        ended = [t for t in self._taken() if t.state == TrialState.COMPLETE and self._is_member(t)]
        if not ended:
            return None
        sign = 1.0 if self._config.direction == "maximize" else -1.0
        return _trial(max(ended, key=lambda trial: (sign * (trial.value or 0.0), -trial.number)))

    def rows(self) -> list[dict[str, Any]]:
        """Every trial in order: what was drawn, how it stands, what it is worth, the last step that is known."""
        return [_row(trial) for trial in self._taken()]

    def _draw(self, worker: int) -> FrozenTrial:
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = _sampler(self._config, seed=self._config.seed + _SEED_STEP * number)
        asked = self._study.ask()
        asked.set_user_attr(_WORKER, worker)
        for key, space in self._config.space.items():
            _draw(asked, key, space)
        return self._study.get_trials(deepcopy=False)[asked.number]

    def _refusal(self, drawn: FrozenTrial, given_out: Mapping[str, int]) -> str | None:
        """Why it is no trial; None for those that are."""
        if self._members is None:
            return None
        if not self._is_member(drawn):
            return "not a member of the space"
        twin = given_out.get(_key(_settings(drawn)), drawn.number)
        return None if twin == drawn.number else f"the same as trial {twin}"

    def _refuse(self, drawn: FrozenTrial, reason: str) -> None:
        """The sampler learns to keep away from what is no member; of what was drawn twice it learns nothing."""
        optuna.Trial(self._study, drawn._trial_id).set_user_attr(_REFUSED, reason)
        state = TrialState.FAIL if self._is_member(drawn) else TrialState.PRUNED
        self._study.tell(drawn.number, state=state)

    def _untried(self, given_out: Mapping[str, int]) -> dict[str, Any]:
        """A member that was not given out yet, drawn evenly."""
        left = [settings for key, settings in (self._members or {}).items() if key not in given_out]
        chosen = random.Random(f"{self._config.seed} {len(given_out)}").choice(left)
        return {key: json.dumps(value) for key, value in chosen.items()}

    def _num_trials(self) -> int:
        most = self._config.trials
        return most if self._members is None else min(most, len(self._members))

    def _given_out(self) -> dict[str, int]:
        """Numbers of the trials there are, by their settings where each may be tried once."""
        trials = [trial for trial in self._taken() if self._is_member(trial)]
        if self._members is None:
            return {str(trial.number): trial.number for trial in trials}
        return {_key(_settings(trial)): trial.number for trial in trials}

    def _is_member(self, trial: FrozenTrial) -> bool:
        return self._members is None or _key(_settings(trial)) in self._members

    def _taken(self) -> list[FrozenTrial]:
        """All trials that were not refused."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if _REFUSED not in trial.user_attrs]

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


def _key(settings: Mapping[str, Any]) -> str:
    """The same for the same settings."""
    return json.dumps(dict(settings), sort_keys=True)


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
