"""MetricTail: the values of one metric in a run's event log, read on from where the last look ended."""

from __future__ import annotations

import json
from pathlib import Path

from launch.following.event_tail import LOG_NAME


class MetricTail:
    """Follows the log of one run folder, which need not be there yet."""

    def __init__(self, run_folder: Path, metric: str) -> None:
        self._path = run_folder / LOG_NAME
        self.metric = metric
        self._offset = 0

    def read(self) -> list[tuple[int, float]]:
        """Step and value of each new point, in the order of the log; a line that is still being written comes later."""
        points = []
        try:
            with self._path.open("rb") as log:
                log.seek(self._offset)
                for line in log:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    point = self._point(line)
                    if point is not None:
                        points.append(point)
        except FileNotFoundError:
            return []
        return points

    def _point(self, line: bytes) -> tuple[int, float] | None:
        if self.metric.encode() not in line:
            return None
        event = json.loads(line)
        step, value = event.get("step"), event.get("values", {}).get(self.metric)
        return (step, float(value)) if isinstance(step, int) and value is not None else None
