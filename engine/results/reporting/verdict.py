"""What an evaluation of teacher, student and control says about distillation, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_PERCENT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an evaluation says about distillation."""

    text: str
    """In plain words."""
    tone: Literal["better", "worse", "even"]
    """``even`` also where the difference may be chance."""


def verdict(rows: Sequence[Mapping[str, Any]], num_images: int | None) -> Verdict | None:
    """Whether the student beats its control, and whether that may be chance; None without both rows."""
    student, control = _row_named(rows, "student"), _row_named(rows, "control")
    if student is None or control is None:
        return None
    a, b = float(student["top1"]), float(control["top1"])
    gain = a - b
    scores = f"{a:.1f} % against {b:.1f} % top-1"
    if gain > 0:
        fewer = _PERCENT * gain / (_PERCENT - b)
        text = (
            f"The student beats the control: {scores}, {gain:.1f} points more and {fewer:.0f} % fewer errors."
        )
    elif gain < 0:
        text = f"The student does not beat the control: {scores}, {-gain:.1f} points less."
    else:
        text = f"The student does not beat the control: both reach {a:.1f} % top-1."
    if not num_images:
        return Verdict(text=text, tone="even")
    # Two independent binomials: wider than the truth, since both saw the same images.
    noise = 2 * math.sqrt((a * (_PERCENT - a) + b * (_PERCENT - b)) / num_images)
    is_clear = abs(gain) > noise
    text += f" On {num_images:,} test images and with one run each, up to {noise:.1f} points can be chance"
    text += "; this is more." if is_clear else ", so this proves nothing."
    return Verdict(text=text, tone="even" if not is_clear else "better" if gain > 0 else "worse")


def _row_named(rows: Sequence[Mapping[str, Any]], word: str) -> Mapping[str, Any] | None:
    found = [row for row in rows if "top1" in row and word in _names(row)]
    return found[0] if len(found) == 1 else None


def _names(row: Mapping[str, Any]) -> str:
    """What the row is called, and the run folder its release lies in."""
    return f"{row.get('name', '')} {Path(str(row.get('path', ''))).parent.name}".lower()
