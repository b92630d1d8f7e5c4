"""Folders of small pictures, packed, and read back without our code."""

from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from imago.trainer.data.manifest import Manifest
from imago.trainer.pack.command import main


def noise(seed: int, height: int = 24, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def folder_of(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        save(noise(seed), root / name)
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in (*arguments, *(() if '--workers' in arguments else ('--workers', 2)))])


def manifest_of(out: Path) -> Manifest:
    return Manifest.from_json((out / 'dataset.json').read_text(), 'test')


def samples(out: Path) -> list[dict]:
    """Read as anyone would, without our code."""
    shards = sorted(str(path) for path in out.glob('*.tar'))
    return list(webdataset.WebDataset(shards, shardshuffle=False).decode('rgb8'))
