"""Files and folders that survive a crash: on the disk before their name says so."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Gives the path to write a file at, which then takes the place of `path` in one step; after an error none of it is left."""
    aside = path.with_name(path.name + '.tmp')
    aside.unlink(missing_ok=True)   # left by a kill; or a pipe, or a link to another file
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """Put a whole file in place in one step, over the old one if there is one; a private one is for its owner alone."""
    with in_place_of(path) as aside, open(aside, 'xb') as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Put a whole file in place in one step, over the old one if there is one; a private one is for its owner alone."""
    write_bytes(path, text.encode(), private)


def open_to_append(path: Path) -> TextIO:
    """Line by line. OSError as `open`, and where a pipe would hang or a device swallow what is written."""
    refusal = OSError(f'{path} is not a regular file, nor a link to one; put it away')
    if path.exists() and not path.is_file():     # to open a pipe that no one reads fails for another reason
        raise refusal
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal
    return os.fdopen(descriptor, 'a', buffering=1)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
