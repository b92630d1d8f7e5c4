"""How made pictures are called: by run, kimg, class, seed and what else has made them, so that no other takes their place."""

import argparse
import hashlib
import re
from pathlib import Path

import numpy as np

from imago.trainer.runs.generator_folder import ABOUT

MOST_LETTERS = 60    # of a part of a name
PLAIN = 'samples'    # the folder of pictures


def folder_of(source: Path) -> Path:
    """Return where pictures of `source` go by default: into the run's folder, and for an export into `samples` here."""
    run = run_of(source)
    return Path(PLAIN) if (source / ABOUT).exists() else run / PLAIN


def run_of(source: Path) -> Path:
    """Return the run folder of a run or of one of its checkpoints; for an export, the export."""
    there = source.absolute()
    return source.parent.parent if there.parent.name == 'checkpoints' else source


def name_of(source: Path, nimg: int, **parts: str) -> str:
    """Return the stem of a picture's name: the run, the kimg, and each part that is not empty, with hyphens between."""
    name = run_of(source).absolute().resolve().name
    return '-'.join(word(part) for part in (name, f'{nimg / 1000:09.3f}kimg', *parts.values()) if part)


def ways(options: argparse.Namespace) -> str:
    """Return what distinguishes pictures of the same seed: psi, and the other options of `imago sample` that are given."""
    said = {'psi': options.psi, 'cutoff': options.psi_cutoff, 'truncation': options.truncation,
            'standing': options.standing_batches or None, 'x': options.scale}
    return '-'.join(f'{name}{value:g}' for name, value in said.items() if value is not None)


def of_condition(conditions: np.ndarray | None) -> str:
    """Return a short name of conditions, rows [N, d]; '' if there are none."""
    return '' if conditions is None else f'condition{hashlib.sha256(np.ascontiguousarray(conditions).tobytes()).hexdigest()[:8]}'


def of_seeds(seeds: list[int]) -> str:
    """Return `seeds0-31` for a range, else the first, the last and a digest, so that other seeds have another name."""
    if len(seeds) == 1:
        return f'seed{seeds[0]:06d}'
    text = f'seeds{seeds[0]}-{seeds[-1]}'
    whole = seeds[-1] - seeds[0] == len(seeds) - 1 and seeds == sorted(seeds)
    return text if whole else f'{text}-{hashlib.sha256(repr(seeds).encode()).hexdigest()[:6]}'


def word(text: str) -> str:
    """Return `text` as a part of a file's name: letters, digits and . _ + = - alone."""
    return re.sub(r'[^\w.+=-]+', '_', text).strip('._')[:MOST_LETTERS] or '_'
