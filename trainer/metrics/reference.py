"""Features of real pictures are kept on the disk, as they are the same in every evaluation of a dataset."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imago.trainer.metrics.extractors import Extractor
from imago.trainer.metrics.features import Rows, features_of_pictures
from imago.trainer.metrics.pictures import Pictures
from imago.trainer.metrics.weights import cache_folder
from imago.trainer.ranks import dist


def reference_features(pictures: Pictures, extractor: Extractor, stopped: Callable[[], bool]) -> Rows | None:
    """Load `features` and `labels` from the cache, or else compute and keep them. Returns them on rank 0, None elsewhere.

    The cache is keyed by the pictures, their size, the weights and the resizer. Damaged files in it are made again.
    """
    path = _path(pictures, extractor)
    rows = _load(path) if dist.is_main() else None
    if any(dist.gather(rows is not None)):
        return rows
    rows = features_of_pictures(pictures, extractor, False, 'reals', stopped)
    if rows:
        try:
            _save(path, rows)
        except OSError as error:
            print(f'warning: features of the reals cannot be kept for the next time: {error}', file=sys.stderr, flush=True)
    return rows


def is_kept(pictures: Pictures, extractor: Extractor) -> bool:
    """Return whether the features are in the cache. They may turn out to be damaged."""
    return _path(pictures, extractor).is_file()


def _path(pictures: Pictures, extractor: Extractor) -> Path:
    return cache_folder() / f'{_key(pictures, extractor)}.safetensors'


def _key(pictures: Pictures, extractor: Extractor) -> str:
    parts = pictures.digest, pictures.size, pictures.count, extractor.sha256, extractor.size, extractor.normalisation, \
        extractor.resizer
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest(rows: Rows) -> str:
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(np.ascontiguousarray(rows[name]).tobytes())
    return digest.hexdigest()


def _load(path: Path) -> Rows | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, 'np') as file:
            rows = {name: file.get_tensor(name) for name in file.keys()}
            if _digest(rows) == file.metadata()['sha256']:
                return rows
            reason = 'its SHA-256 is not the one within'
    except (SafetensorError, OSError) as error:
        reason = str(error)
    print(f'warning: {path} is damaged ({reason}); its features are computed again', file=sys.stderr, flush=True)
    return None


def _save(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix='.part')
    os.close(handle)
    try:
        save_file(rows, aside, {'sha256': _digest(rows)})
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
