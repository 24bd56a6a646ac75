"""What the data pipeline raises when the data, not the program, is at fault."""

from __future__ import annotations

from configs.base import ConfigError


class DataError(ConfigError):
    """Data that is missing, damaged or does not fit the run; the message names it and says what to do."""


class TarError(DataError):
    """A tar whose members are not in order: what is in it cannot be told for sure."""
