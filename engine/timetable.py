"""Timetable: when a run warms up, logs, evaluates, saves and ends, and its learning rate; pure, in steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from configs.base import ConfigError, Duration
from configs.training import RunConfig
from models.progressive import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """A run's config with every duration turned into optimizer steps."""

    global_batch: int
    total_steps: int
    warmup_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    decay_steps: int
    """The last steps, in which the rate goes down: all after the warm-up, none, or those of `schedule.decay`."""
    schedule: str
    peak_lr: float
    min_lr: float
    activation: Activation | None = None
    """When the layers of `model.attention.progressive` come in."""

    @classmethod
    def of(cls, config: RunConfig, *, steps_per_epoch: int) -> Timetable:
        """The timetable of a config on data of this length."""
        train, schedule = config.train, config.schedule

        def steps(name: str, duration: Duration) -> int:
            count = duration.steps(steps_per_epoch=steps_per_epoch, global_batch=train.global_batch)
            if count < 1:
                raise ConfigError(
                    f"{name}: '{duration}' is less than one optimizer step (an epoch has {steps_per_epoch} steps "
                    f"of {train.global_batch} images); make it longer or train.global_batch smaller"
                )
            return count

        total_steps = steps("train.duration", train.duration)
        warmup_steps = schedule.warmup.steps(steps_per_epoch=steps_per_epoch, global_batch=train.global_batch)
        if warmup_steps >= total_steps and warmup_steps > 0:
            raise ConfigError(
                f"schedule.warmup: '{schedule.warmup}' is {warmup_steps} steps, the whole run "
                f"('{train.duration}') is {total_steps}; make the warm-up shorter"
            )
        decay_steps = 0 if schedule.name == "constant" else total_steps - warmup_steps
        if schedule.name == "wsd":
            tenth = max(1, round(total_steps / 10))
            decay_steps = tenth if schedule.decay is None else steps("schedule.decay", schedule.decay)
            if warmup_steps + decay_steps > total_steps:
                raise ConfigError(
                    f"schedule.decay: {decay_steps} steps after {warmup_steps} of warm-up are more than the whole run "
                    f"('{train.duration}', {total_steps} steps); make the decay or the warm-up shorter"
                )
        return cls(
            global_batch=train.global_batch,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            decay_steps=decay_steps,
            log_every=train.log_every,
            evaluate_every=steps("train.evaluate_every", train.evaluate_every),
            checkpoint_every=steps("train.checkpoint_every", train.checkpoint_every),
            schedule=schedule.name,
            peak_lr=config.optim.lr,
            min_lr=schedule.min_lr,
            activation=_activation(config, steps, total_steps=total_steps),
        )

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0): linear warm-up, the peak, then the decay down to `min_lr`."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        decay_start = self.total_steps - self.decay_steps
        if step <= decay_start:
            return self.peak_lr
        done = (step - decay_start) / self.decay_steps
        left = 0.5 * (1.0 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0 - done
        return self.min_lr + (self.peak_lr - self.min_lr) * left

    def is_due(self, every: int, step: int) -> bool:
        """Whether something done `every` so many steps, and at the end, is due after `step` steps."""
        return step % every == 0 or step == self.total_steps


def _activation(
    config: RunConfig, steps: Callable[[str, Duration], int], *, total_steps: int
) -> Activation | None:
    progressive = config.model.attention.progressive
    if progressive is None:
        return None
    where = "model.attention.progressive"
    over_steps = steps(f"{where}.over", progressive.over)
    if over_steps > total_steps:
        raise ConfigError(
            f"{where}.over: '{progressive.over}' is {over_steps} steps, the whole run ('{config.train.duration}') is "
            f"{total_steps}; make it shorter, so that all layers are there in the end"
        )
    fade_steps = None if progressive.fade is None else steps(f"{where}.fade", progressive.fade)
    if fade_steps is not None and fade_steps > over_steps:
        raise ConfigError(
            f"{where}.fade: one layer ('{progressive.fade}', {fade_steps} steps) cannot take longer than all "
            f"('{progressive.over}', {over_steps} steps); make it shorter"
        )
    return Activation(over_steps=over_steps, fade_steps=fade_steps, start=progressive.start)
