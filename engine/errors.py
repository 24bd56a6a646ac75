"""Mistakes and breakdowns of a run: those its user can act on are messages without a traceback."""

from __future__ import annotations

from configs.base import ConfigError


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used: broken, missing, or of another shape of run."""


class DivergenceError(ConfigError):
    """Loss or gradients were not finite for too many steps in a row, and going back did not help."""


class LostRankError(RuntimeError):
    """Another rank died, failed or hangs; the message names it. What this rank raised because of it is the cause."""
