"""Tiny packed datasets."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import TarWriter

from trainer.data.manifest import Manifest, Shard, sample_key

SIZE = 8  # pixels


def picture(index: int, encoding: str = 'png', size: int = SIZE) -> bytes:
    """A picture whose pixels tell which one it is."""
    rng = np.random.default_rng(index)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(out, encoding)
    return out.getvalue()


def write_dataset(folder: Path, sizes: tuple[int, ...], *, classes: int = 0, encoding: str = 'png',
                  size: int = SIZE) -> Path:
    """One shard of each of `sizes` samples; sample i has the class i % classes."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, first = [], 0
    for number, samples in enumerate(sizes):
        path = folder / f'shard-{number:05d}.tar'
        with TarWriter(str(path)) as tar:
            for index in range(first, first + samples):
                label = {'cls': index % classes} if classes else {}
                tar.write({'__key__': sample_key(index), encoding: picture(index, encoding, size), **label})
        shards.append(shard_entry(path, first, samples))
        first += samples
    names = tuple(f'class{c}' for c in range(classes))
    counts = tuple(len(range(c, first, classes)) for c in range(classes))
    Manifest((size, size), 3, encoding, names, counts, tuple(shards)).write(folder)
    return folder


def shard_entry(path: Path, first: int, samples: int) -> Shard:
    content = path.read_bytes()
    return Shard(path.name, first, samples, len(content), hashlib.sha256(content).hexdigest())


def rewrite_shard(folder: Path, number: int, content: bytes) -> None:
    """Change a shard's bytes, and the manifest with them, as if it had been damaged before it was described."""
    manifest = Manifest.from_json((folder / 'dataset.json').read_text(), 'test')
    path = folder / manifest.shards[number].name
    path.write_bytes(content)
    shards = list(manifest.shards)
    shards[number] = shard_entry(path, shards[number].first, shards[number].samples)
    Manifest(manifest.resolution, manifest.channels, manifest.encoding, manifest.class_names, manifest.class_counts,
             tuple(shards)).write(folder)


def copy_dataset(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))
