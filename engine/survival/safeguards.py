"""Safeguards: what brings a run through what goes wrong within it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.survival.rollback import Rollback
from engine.survival.watchdog import Watchdog


@dataclass(frozen=True, slots=True, kw_only=True)
class Safeguards:
    """Against ranks that die, fail or hang, and against steps that are not finite."""

    watchdog: Watchdog
    rollback: Rollback
