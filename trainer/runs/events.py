"""The calling thread itself writes TensorBoard's event files, so it hears of a full disk at once, and in one place."""

import itertools
import os
import socket
import time
from pathlib import Path

import numpy as np


class Events:
    """Writes one event file. TensorBoard leaves out whatever an earlier file in `folder` shows from `purge_step` on."""

    def __init__(self, folder: Path, purge_step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # this import takes a second, and only a run needs it
        from tensorboard.summary.writer.record_writer import RecordWriter
        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._records = RecordWriter(_open_new(folder))
        self._write(file_version='brain.Event:2')
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, values: dict[str, float | str], step: int) -> None:
        from torch.utils.tensorboard.summary import scalar, text
        for name, value in values.items():
            self._write(step=step, summary=text(name, value) if isinstance(value, str) else scalar(name, value))

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Add a picture [HWC] uint8."""
        from torch.utils.tensorboard.summary import image
        self._write(step=step, summary=image(name, picture, dataformats='HWC'))

    def close(self) -> None:
        self._records.close()

    def _write(self, **fields: object) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())


class _Whole:
    """Writes all of a text or raises OSError. It has no buffer, as that would fail once more when the file is closed."""

    def __init__(self, path: Path):
        self._file = open(path, 'xb', buffering=0)

    def write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data):]

    def close(self) -> None:
        self._file.close()


def _open_new(folder: Path) -> _Whole:
    for number in itertools.count():
        name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{number}'
        if not (folder / name).exists():
            return _Whole(folder / name)
    raise AssertionError('a number is free')
