"""This module reads CIFAR-10 and CIFAR-100, the python and the binary version, from a .tar.gz or the folder that is in it."""

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from imago.trainer.data.reading import open_regular
from imago.trainer.pack.arrays import MOST_BYTES, ArrayMember
from imago.trainer.pack.contents import COLLECTION, Contents
from imago.trainer.pack.members import FOLDERS, SPECIAL, Header, Member, tidy
from imago.trainer.pack.pickles import unpickle

SIDE, PIXELS = 32, 3 * 32 * 32
OF_10 = {**{f'data_batch_{number}': 'train' for number in range(1, 6)}, 'test_batch': 'test'}   # batch -> split
OF_100 = {'train': 'train', 'test': 'test'}
# A file names the classes. Here are the key of the names in it, or, of the binary version, the number of labels of a picture.
PYTHON = {'batches.meta': 'label_names', 'meta': 'fine_label_names'}
BINARY = {'batches.meta.txt': 1, 'fine_label_names.txt': 2}


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(('.tar.gz', '.tgz'))


def read_cifar(contents: Contents) -> bool:
    """Add the pictures of its files among `contents.collections`, if they are there. ValueError if one is malformed."""
    files = {PurePosixPath(path).name: path for path in contents.collections}
    if not _is_cifar(files):
        return False

    def read(name: str) -> bytes:
        with open_regular(contents.open_collection(files[name])) as file:
            return file.read(MOST_BYTES)
    _add(contents, {name: str(contents.collections[path]) for name, path in files.items()}, read)
    return True


def read_archive(path: Path) -> Contents:
    """Read a .tar.gz. ValueError if it is no CIFAR."""
    contents, files, left = Contents(), {}, MOST_BYTES
    try:
        with open_regular(path) as raw, tarfile.open(fileobj=raw, mode='r|gz', tarinfo=Header) as tar:
            for header in tar:
                name = PurePosixPath(tidy(header.name)).name
                if header.isreg() and COLLECTION.fullmatch(name) and 0 < header.size <= left:
                    left -= header.size
                    files[name] = tar.extractfile(header).read()
                else:
                    contents.add(tidy(header.name), Member(header.name, str(path)),
                                 '' if header.isreg() else FOLDERS if header.isdir() else SPECIAL)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f'{path} cannot be read ({error}); get it again') from error
    if not _is_cifar(files):
        raise ValueError(f'{path} is no CIFAR, the only .tar.gz that is read as it is; unpack it (tar -xzf {path.name}), and '
                         'give the folder')
    _add(contents, dict.fromkeys(files, str(path)), files.__getitem__)
    return contents


def _is_cifar(names: dict) -> bool:
    return any(meta in names and any(batch in names for batch in _batches(meta)) for meta in (*PYTHON, *BINARY))


def _batches(meta: str) -> dict[str, str]:
    """Return {name of a batch: its split}, of the batches that may lie beside the file `meta`."""
    batches = OF_10 if meta.startswith('batches') else OF_100
    return batches if meta in PYTHON else {f'{batch}.bin': split for batch, split in batches.items()}


def _add(contents: Contents, places: dict[str, str], read: Callable[[str], bytes]) -> None:
    """Add the pictures of all batches. `places` tells by the name of a batch which file holds it."""
    meta = next(name for name in (*PYTHON, *BINARY) if name in places)
    try:
        contents.class_names = _names_of_classes(meta, read(meta))
        for batch, split in _batches(meta).items():
            if batch not in places:
                continue
            data = read(batch)
            pixels, labels = _from_pickle(data, meta) if meta in PYTHON else _from_binary(data, BINARY[meta])
            colours = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)   # [NHWC]
            for number, (picture, label) in enumerate(zip(colours, labels, strict=True)):
                path = f'{split}/{batch}/{number:05d}'
                contents.add_held(path, ArrayMember(path, places[batch], picture), str(label))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f'{places[meta]} is no whole CIFAR ({error}); get it again') from error


def _names_of_classes(meta: str, data: bytes) -> tuple[str, ...]:
    if meta in BINARY:
        return tuple(line.strip() for line in data.decode().splitlines() if line.strip())
    names = unpickle(data).get(PYTHON[meta])
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise ValueError(f'{meta} has no list {PYTHON[meta]}')
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _from_pickle(data: bytes, meta: str) -> tuple[np.ndarray, list[int]]:
    """Return pictures, uint8 [N, 3072], and N labels, which are the fine ones of CIFAR-100."""
    batch = unpickle(data)
    pixels, labels = batch.get('data'), batch.get('labels' if meta == 'batches.meta' else 'fine_labels')
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (PIXELS,) or not isinstance(labels, list) \
            or len(labels) != len(pixels) or not all(type(label) is int for label in labels):
        raise ValueError('a batch has no data [N, 3072] with N labels')
    return pixels, labels


def _from_binary(data: bytes, labels: int) -> tuple[np.ndarray, list[int]]:
    """Return what `_from_pickle` does. A row holds one or two labels, the fine one last, and the values."""
    if len(data) % (labels + PIXELS) or not data:
        raise ValueError(f'a batch has {len(data)} bytes, no multiple of {labels + PIXELS}')
    rows = np.frombuffer(data, np.uint8).reshape(-1, labels + PIXELS)
    return rows[:, labels:], rows[:, labels - 1].tolist()
