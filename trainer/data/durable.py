"""Files and folders are written so that they survive a crash: they are on the disk before their name says so."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Give a path to write a file at, which then takes the place of `path` in one step.

    After an error nothing of it is left; an OSError names `path`.
    """
    aside = path.with_name(path.name + '.tmp')
    aside.unlink(missing_ok=True)   # a killed process left it, or it is a pipe or a link to another file
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise OSError(f'{path} cannot be written: {error}') from error
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """Put a whole file in place in one step, over an old one if there is one. Only the owner can read a `private` file."""
    with in_place_of(path) as aside, open(aside, 'xb') as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class Written(NamedTuple):
    path: Path
    new: bool       # whether it has been written now; else just this was there


def write_beside(path: Path, content: bytes) -> Written:
    """Write `content` to `path`, or where another file has that name, to NAME-2, NAME-3 ... Returns where it is.

    A file that holds just this stays as it is. Nothing is overwritten.
    """
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f'{path.stem}-{number}{path.suffix}')
        if not os.path.lexists(place):
            write_bytes(place, content)
            return Written(place, True)
        if place.is_file() and place.stat().st_size == len(content) and place.read_bytes() == content:
            return Written(place, False)
    raise AssertionError('a number is free')


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Put a whole file in place in one step, over an old one if there is one. Only the owner can read a `private` file."""
    write_bytes(path, text.encode(), private)


def open_to_append(path: Path) -> TextIO:
    """Open a file to append lines. Raises OSError like `open`, and where a pipe would hang or a device would keep nothing."""
    if path.exists() and not path.is_file():
        raise OSError(f'{path} is not a regular file, nor a link to one; put it away')
    return open(path, 'a', buffering=1)


def sync_folder(folder: Path) -> None:
    """Make sure that the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
