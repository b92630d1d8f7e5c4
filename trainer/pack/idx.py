"""This module reads files like MNIST's, `train-images-idx3-ubyte.gz` and `train-labels-idx1-ubyte.gz`."""

import gzip
import re
import zlib
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np

from imago.trainer.data.reading import open_regular
from imago.trainer.pack.arrays import MOST_BYTES, ArrayMember
from imago.trainer.pack.contents import Contents
from imago.trainer.wording import listed

IMAGES = re.compile(r'(?:(?P<set>.*)[-_.])?(?P<split>train|t10k|test|val)[-_.]images[-_.]idx3-ubyte(?P<gz>\.gz)?')
SPLITS = {'t10k': 'test'}


def read_idx(contents: Contents) -> bool:
    """Add the pictures of all such files among `contents.collections`. ValueError if one is malformed, or sets are mixed."""
    found = {path: match for path in sorted(contents.collections) if (match := IMAGES.fullmatch(PurePosixPath(path).name))}
    for path in [path for path, match in found.items() if match['gz'] and path.removesuffix('.gz') in found]:
        del found[path]   # the unpacked file holds the same
    sets = {(str(PurePosixPath(path).parent), match['set']): path for path, match in found.items()}
    if len(sets) > 1:
        raise ValueError(f'there are pictures of several sets, whose labels mean different things: {listed(sets.values())}; '
                         'give the files of one')
    for path, match in found.items():
        _add_images(contents, path, SPLITS.get(match['split'], match['split']))
    return bool(found)


def _add_images(contents: Contents, path: str, split: str) -> None:
    file = contents.open_collection(path)
    pictures = _read(file, 3)
    labels: list[str | None] = [None] * len(pictures)
    beside = file.name.replace('images', 'labels').replace('idx3', 'idx1').removesuffix('.gz')
    inside = {name: str(PurePosixPath(path).with_name(name)) for name in (beside, f'{beside}.gz')}
    there = next((name for name in inside if file.with_name(name).is_file()), None)
    if there:
        if inside[there] in contents.collections:
            contents.open_collection(inside[there])
        labels = [str(label) for label in _read(file.with_name(there), 1)]
        if len(labels) != len(pictures):
            raise ValueError(f'{file} holds {len(pictures)} pictures, and {there} {len(labels)} labels; get both again')
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        name = f'{split}/{number:06d}'
        contents.add_held(name, ArrayMember(name, str(file), picture), label)


def _read(path: Path, dimensions: int) -> np.ndarray:
    """Return uint8 of so many dimensions. ValueError unless the file holds what its head says."""
    try:
        with open_regular(path) as raw, (gzip.open(raw) if path.suffix == '.gz' else raw) as file:
            head = np.frombuffer(file.read(4 * (1 + dimensions)), '>u4')
            if len(head) != 1 + dimensions or head[0] != 0x800 + dimensions:
                raise ValueError(f'it does not begin like bytes in {dimensions} dimensions')
            shape = tuple(map(int, head[1:]))
            if not 0 < prod(shape) <= MOST_BYTES:
                raise ValueError(f'it claims {prod(shape)} values, where 1 to {MOST_BYTES} are expected')
            data = file.read(prod(shape) + 1)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f'{path} is no IDX file of MNIST\'s kind ({error}); get it again') from error
    if len(data) != prod(shape):
        raise ValueError(f'{path} holds {"more" if len(data) > prod(shape) else "fewer"} values than the '
                         f'{prod(shape)} that its head tells; get it again')
    return np.frombuffer(data, np.uint8).reshape(shape)
