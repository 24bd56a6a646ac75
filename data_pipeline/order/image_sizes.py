"""ImageSizes: the side of training images as a function of the step (``data.progressive``); pure."""

from __future__ import annotations

from bisect import bisect_right

from configs.base import ConfigError, Duration
from configs.data import DataConfig


class ImageSizes:
    """Phases of one size each: the same on all ranks and after any interruption, since the step alone decides.

    NOTE: the step is that of the data. A run that leaves out a window of batches after a rollback comes to a phase's
    end by so many steps of the optimizer earlier.
    """

    def __init__(self, sizes: tuple[int, ...], *, ends: tuple[int, ...]) -> None:
        self._sizes = sizes
        self._ends = ends

    @classmethod
    def of(
        cls, data: DataConfig, duration: Duration | None, *, steps_per_epoch: int, global_batch: int
    ) -> ImageSizes:
        """The sizes of a run of this duration; ConfigError where a phase would have no step."""
        if not data.progressive:
            return cls(data.image_sizes, ends=())
        if duration is None:
            raise ValueError("data.progressive needs the duration of the run")
        scale = {"steps_per_epoch": steps_per_epoch, "global_batch": global_batch}
        ends = tuple(phase.until.step(duration, **scale) for phase in data.progressive)
        total = duration.steps(**scale)
        if any(end >= later for end, later in zip((0, *ends), (*ends, total), strict=True)):
            written = ", ".join(
                f"'{phase.until}' (step {end})" for phase, end in zip(data.progressive, ends, strict=True)
            )
            raise ConfigError(
                f"data.progressive: phases end at {written} of a run of {total} steps ('{duration}'); each has to end "
                "after the one before, and the last before the run does"
            )
        return cls(data.image_sizes, ends=ends)

    def at(self, flat_step: int) -> int:
        """The side of the images of this step (from 0), in pixels."""
        return self._sizes[bisect_right(self._ends, flat_step)]
