"""This module reads a file of conditions, one for each picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imago.trainer.data.conditions import MOST_VALUES
from imago.trainer.data.reading import open_regular, parse_json
from imago.trainer.pack.members import tidy
from imago.trainer.wording import listed

MOST_BYTES = 1 << 30    # of a text file of conditions; more conditions must come as an array
HOW = 'write an array [pictures, values] as .npy, lines path,value,value,... as .csv, or an object path -> [values] as .json'


def read_conditions(path: Path, names: Sequence[str] | None = None, option: str = '--conditions',
                    elsewhere: Sequence[str] = ()) -> np.ndarray:
    """Return conditions, float32 [N, d] or [N, T, d], for pictures of these names, which are sorted.

    A `.npy` holds them in that order; `.csv` and `.json` name the picture of each. Without `names`, they stay in the order of
    the file. ValueError, which names `option`, if the file is malformed, its values are not finite, or it does not fit these
    pictures. It may also name pictures that are `elsewhere`.
    """
    told = f'{option} {path}'
    if path.suffix.lower() not in READERS:
        raise ValueError(f'{told} is no .npy, .csv or .json; {HOW}')
    try:
        found: Any = READERS[path.suffix.lower()](path)
    except FileNotFoundError as error:
        raise ValueError(f'{told} does not exist') from error
    except (ValueError, EOFError, SyntaxError, csv.Error, RecursionError) as error:
        raise ValueError(f'{told} cannot be read ({error}); {HOW}') from error
    if isinstance(found, dict):
        names = list(found) if names is None else names
    conditions: np.ndarray = _match(found, names, told, elsewhere) if isinstance(found, dict) else found
    numbers = conditions.dtype.kind in 'fiu' and conditions.ndim in (2, 3) and conditions.size
    if not numbers or conditions[0].size > MOST_VALUES:
        raise ValueError(f'{told} holds {conditions.dtype} {list(conditions.shape)}, where numbers [pictures, '
                         f'values] or [pictures, length, values] are expected, 1 to {MOST_VALUES} of each picture')
    if names is None:
        names = [f'row {number}' for number in range(1, len(conditions) + 1)]
    if len(conditions) != len(names):
        raise ValueError(f'{told} has {len(conditions)} rows, and SOURCE {len(names)} pictures; give one row a '
                         f'picture, in the order of their names, of which {names[0]!r} is the first and {names[-1]!r} the last')
    with np.errstate(over='ignore'):
        conditions = conditions.astype('<f4')
    odd = [name for name, condition in zip(names, conditions, strict=True) if not np.isfinite(condition).all()]
    if odd:
        raise ValueError(f'{told} has values that no float32 holds, or none, for {len(odd)} pictures: {listed(odd)}')
    return conditions


def _read_npy(path: Path) -> np.ndarray:
    open_regular(path).close()
    return np.lib.format.open_memmap(path, mode='r')   # it refuses objects, and takes no memory for a size that is not there


def _read_csv(path: Path) -> dict[str, list[float]]:
    found = {}
    rows = csv.reader(io.StringIO(_text(path), newline=''))
    for row in rows:
        if row and not (rows.line_num == 1 and row[0].strip().lower() == 'path'):
            try:
                values = [float(value) for value in row[1:]]
            except ValueError as error:
                raise ValueError(f'line {rows.line_num}: {error}') from error
            _add(found, row[0], values)
    return found


def _read_json(path: Path) -> dict[str, list]:
    tree, found = parse_json(_text(path)), {}
    if not isinstance(tree, dict):
        raise ValueError('it is no object path -> [values]')
    for name, values in tree.items():
        _add(found, name, values)
    return found


READERS = {'.npy': _read_npy, '.csv': _read_csv, '.json': _read_json}    # by a file's suffix


def _text(path: Path) -> str:
    with open_regular(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f'it has more than {MOST_BYTES} bytes; write an .npy')
    return data.decode('utf-8-sig', 'surrogateescape')


def _add(found: dict[str, list], name: str, values: object) -> None:
    name = tidy(name)
    if not isinstance(values, list):
        raise ValueError(f'the condition of {name!r} is no list of numbers')
    if name in found:
        raise ValueError(f'{name!r} has two conditions')
    found[name] = values


def _match(found: Mapping[str, list], names: Sequence[str], told: str, elsewhere: Sequence[str]) -> np.ndarray:
    """Return the conditions of `names`, in their order."""
    tidied = [tidy(name) for name in names]
    lacking = [name for name in tidied if name not in found]
    if lacking:
        raise ValueError(f'{told} has none for {len(lacking)} pictures: {listed(lacking)}; give each one')
    unknown = sorted(found.keys() - set(tidied) - set(map(tidy, elsewhere)))
    if unknown:
        raise ValueError(f'{told} has some for {len(unknown)} paths that are no picture in SOURCE: '
                         f'{listed(unknown)}; paths are as seen from SOURCE, like {tidied[0]!r}')
    shapes = {}
    for name in tidied:
        try:
            shapes.setdefault(np.shape(found[name]), name)
        except ValueError as error:
            raise ValueError(f'{told}: the condition of {name!r} is ragged; make all of its rows as long') from error
    if len(shapes) > 1:
        (shape, first), (other, second) = list(shapes.items())[:2]
        raise ValueError(f'{told}: that of {first!r} is {list(shape)}, that of {second!r} {list(other)}; all must '
                         'have one shape')
    return np.array([found[name] for name in tidied])
