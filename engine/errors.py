"""Mistakes and breakdowns of a run that its user can act on; each is a message without a traceback."""

from __future__ import annotations

from configs.base import ConfigError


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used: broken, missing, or of another shape of run."""


class DivergenceError(ConfigError):
    """Loss or gradients were not finite for too many steps in a row."""
