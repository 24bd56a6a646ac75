"""TensorBoardFiles: a run's points as event files that TensorBoard reads; the only importer of tensorboard.

Files are cheap to make again: each connection writes them anew from the whole log, so that nothing is doubled after a
kill. A rollback while following is told in TensorBoard's own way, a restart record that takes later steps back.
"""

from __future__ import annotations

import importlib.util
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from configs.base import ConfigError
from engine.tracking.follower import SinkError
from engine.tracking.log_reader import Event, points_of, rewound_to

FOLDER_NAME = "tensorboard"
SYSTEM_NAME = "system"
"""Samples of the host have a folder of their own: they count samples, not steps, and no rollback takes them back."""


class TensorBoardFiles:
    """Event files below a run folder's `tensorboard`, for `tensorboard --logdir runs`."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER_NAME
        self.place = f"{self._folder} {uuid.uuid4().hex}"
        self._files: dict[str, _EventFile] = {}
        try:
            for former in self._folder.rglob("*tfevents*"):
                former.unlink()
        except OSError as failure:
            raise SinkError(f"TensorBoard files in {self._folder}: {failure}") from failure

    def send(self, events: Sequence[Event]) -> None:
        """Writes a piece of the log; visible to TensorBoard when this returns."""
        try:
            for event in events:
                last_step = rewound_to(event)
                if last_step is not None:
                    self._file(".").take_back(event["time"], last_step)
                file = self._file(SYSTEM_NAME if event["kind"] == "system" else ".")
                for name, step, value in points_of(event):
                    file.add(event["time"], step, name, value)
            for file in self._files.values():
                file.flush()
        except OSError as failure:
            raise SinkError(f"TensorBoard files in {self._folder}: {failure}") from failure

    def upload(self, path: Path, folder: str) -> None:
        """Nothing: TensorBoard shows points, and files lie where they are."""

    def publish(self, release: Event) -> None:
        """Nothing: TensorBoard has no registry."""

    def _file(self, name: str) -> _EventFile:
        if name not in self._files:
            self._files[name] = _EventFile(self._folder / name)
        return self._files[name]


def check_tensorboard() -> None:
    """ConfigError unless the optional package is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking.tensorboard is true, but the package tensorboard is not installed: pip install "
            "'mirada[tensorboard]', or leave tracking.tensorboard out"
        )


class _EventFile:
    """One file of TensorBoard events, written record by record."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # The form of name by which TensorBoard finds its files; a file that is read when it vanishes stays readable.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}"
        self._file: BinaryIO = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._record: Any = Record
        self._write(wall_time=time.time(), file_version="brain.Event:2")

    def add(self, wall_time: float, step: int, name: str, value: float) -> None:
        """One point."""
        self._write(wall_time=wall_time, step=step, summary={"value": [{"tag": name, "simple_value": value}]})

    def take_back(self, wall_time: float, last_step: int) -> None:
        """Readers drop what they have of later steps."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._write(wall_time=wall_time, step=last_step + 1, session_log=SessionLog(status=SessionLog.START))

    def flush(self) -> None:
        self._records.flush()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._record(**fields).SerializeToString())
