"""What every config is made of: sections that refuse unknown keys, durations, and the error of a user's mistake."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

_UNITS = {"k": 1_000, "M": 1_000_000}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kM]?)\s*(epochs?|steps?|images?)\s*$")


class ConfigError(Exception):
    """A user's mistake: printed without a traceback, exit code 2."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training in the unit its author thinks in: ``90 epochs``, ``10k steps``, ``1.2M images``."""

    amount: float
    unit: Literal["epochs", "steps", "images"]

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Reads the written form; raises ValueError with an example when it is not one."""
        if isinstance(text, Duration):
            return text
        match = _DURATION.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("write a duration as '90 epochs', '10k steps' or '1.2M images'")
        number, scale, unit = match.groups()
        plural: Any = unit if unit.endswith("s") else unit + "s"
        return cls(float(number) * _UNITS.get(scale, 1), plural)

    def steps(self, *, steps_per_epoch: int, global_batch: int) -> int:
        """Optimizer steps this lasts, rounded to the nearest."""
        per_unit = {"epochs": float(steps_per_epoch), "steps": 1.0, "images": 1.0 / global_batch}
        return round(self.amount * per_unit[self.unit])

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


DurationField = Annotated[Duration, BeforeValidator(Duration.parse), PlainSerializer(str, return_type=str)]


class Section(BaseModel):
    """Part of a config: frozen, and unknown keys are errors."""

    # Built when first used: `launch` imports the sections of all programs and uses those of one.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)
