"""Tiny packed datasets."""

import hashlib
import io
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import TarWriter

from imago.trainer.data.checksums import append_checksums, checksum
from imago.trainer.data.manifest import Manifest, Shard, sample_key
from imago.trainer.data.shards import Dataset
from imago.trainer.data.stream import Batch, stream

SIZE = 8  # pixels


def picture(index: int, encoding: str = 'png', size: int = SIZE) -> bytes:
    """A picture whose pixels tell which one it is."""
    rng = np.random.default_rng(index)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(out, encoding)
    return out.getvalue()


def write_dataset(folder: Path, sizes: tuple[int, ...], *, classes: int = 0, encoding: str = 'png',
                  size: int = SIZE, checksums: bool = True) -> Path:
    """One shard of each of `sizes` samples; sample i has the class i % classes. Older ones have no checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, first = [], 0
    for number, samples in enumerate(sizes):
        path = folder / f'shard-{number:05d}.tar'
        with TarWriter(str(path)) as tar:
            sums = []
            for index in range(first, first + samples):
                label = {'cls': str(index % classes).encode()} if classes else {}
                members = {encoding: picture(index, encoding, size), **label}
                tar.write({'__key__': sample_key(index), **members})
                sums.append(checksum(*members.values()))
            digest = append_checksums(tar.tarstream, first, sums) if checksums else None
        content = path.read_bytes()
        shards.append(Shard(path.name, first, samples, len(content), hashlib.sha256(content).hexdigest(), digest))
        first += samples
    names = tuple(f'class{c}' for c in range(classes))
    counts = tuple(len(range(c, first, classes)) for c in range(classes))
    Manifest((size, size), 3, encoding, names, counts, tuple(shards)).write(folder)
    return folder


def rewrite_shard(folder: Path, number: int, content: bytes) -> None:
    """Change a shard's bytes, and size and SHA-256 in the manifest with them: then readers have to find out what is wrong."""
    manifest = Manifest.from_json((folder / 'dataset.json').read_text(), 'test')
    shards = list(manifest.shards)
    (folder / shards[number].name).write_bytes(content)
    shards[number] = replace(shards[number], bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    replace(manifest, shards=tuple(shards)).write(folder)


def copy_dataset(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def take(dataset: Dataset, steps: int = 6, **changes) -> list[Batch]:
    """Take the first batches of the dataset's stream, for one rank unless `changes` says otherwise."""
    settings = dict(batch=8, lanes=4, seed=1, rank=0, world=1, nimg=0, resolution=dataset.size, flip=True, workers=0)
    batches = stream(dataset, **(settings | changes))
    taken = list(itertools.islice(batches, steps))
    batches.close()
    return taken
