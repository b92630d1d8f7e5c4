"""The options by which a user says what pictures are to show: `--class` or `--condition`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imago.trainer.pack.conditions import READERS, read_conditions
from imago.trainer.wording import shown

if TYPE_CHECKING:
    from imago.trainer.games.makers import Maker


def add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--class', dest='label', help='name or number of a class; default: as frequent as in the data')
    parser.add_argument('--condition', metavar='X,X,...|FILE', help='numbers, or a FILE.npy, .csv or .json as imago pack '
                        '--conditions takes it, with one row for all seeds or one for each, in their order; default: some of the '
                        "data's")


def read_condition(text: str, count: int) -> np.ndarray:
    """Return the numbers in `text` for each of `count` pictures, or the rows of the file that it names: float32 [count, d].

    ValueError if it is neither.
    """
    if Path(text).suffix.lower() in READERS:
        rows = read_conditions(Path(text), option='--condition')
    else:
        try:
            with np.errstate(over='ignore'):
                rows = np.array([[float(number) for number in text.split(',')]]).astype(np.float32)
        except ValueError as error:
            raise ValueError(f'--condition {shown(text)}: {error}; write numbers as 0.2,1.5,-3, or give a FILE.npy, .csv or '
                             '.json') from error
        if not np.isfinite(rows).all():
            raise ValueError(f'--condition {shown(text)} has a number that no float32 holds; give finite ones')
    if rows.ndim != 2:
        raise ValueError(f'--condition {shown(text)} holds sequences {list(rows.shape)}; give a row of numbers for each seed')
    if len(rows) not in (1, count):
        raise ValueError(f'--condition {shown(text)} has {len(rows)} rows for {count} seeds; give one row for all, or {count}')
    return np.repeat(rows, count // len(rows), axis=0)


def class_of(name: str, maker: 'Maker', class_names: list[str]) -> int:
    """Return the number of the class that `--class` names. ValueError if the generator has no such class."""
    if maker.condition_size:
        raise ValueError(f'--class {shown(name)}: this generator has no classes but conditions of {maker.condition_size} '
                         'numbers; choose one by --condition')
    from imago.trainer.data.labels import class_index  # it imports torch, which takes seconds

    return class_index(name, class_names)
