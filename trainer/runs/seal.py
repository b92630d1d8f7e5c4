"""What a checkpoint says of itself, in its `complete.json`. Torch-free, as what only reads runs should start at once."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from imago.trainer.config.load import parse_kept
from imago.trainer.data.sealed import CHECKSUM, Count, facts, read_sealed
from imago.trainer.runs.checkpoint_names import is_name, list_checkpoints

SEAL = 'complete.json'
T = TypeVar('T')


class Seal(BaseModel):
    """These facts stand in `complete.json`."""

    model_config = ConfigDict(strict=True)

    nimg: Count
    step: Count
    world_size: Count
    config: dict
    dataset: str                            # digest
    pictures: Count = 0
    parameters: dict[str, Count] = {}
    generator: dict
    files: dict[str, list[Count]]  # size and CRC-32
    kernels: str = ''                       # kernels that were used, see trainer/ranks/backend.py; '' before seals had a checksum
    datasets: list[dict[str, str | Count]] = []   # former datasets of the run: digest, pictures, and nimg at the change
    checksum: str = ''


_SEALED_BEFORE = Seal.model_fields.keys() - {'kernels', 'datasets', CHECKSUM}


def newest_of(folder: Path, inspect: Callable[[Path], T]) -> tuple[Path, T]:
    """Return the newest checkpoint in `folder` that `inspect` accepts, and its result. It is for use from outside of the run.

    Warns of each that it passes over, as `inspect` raises ValueError or OSError. Raises ValueError if none is left.
    """
    damage = 'it has none'
    while True:
        for path in reversed(list_checkpoints(folder)):
            try:
                return path, inspect(path)
            except (ValueError, OSError) as error:
                if not path.exists():
                    break   # the run has pruned it meanwhile, and has newer ones
                damage = str(error)
                print(f'warning: checkpoint {path} is passed over: {damage}', file=sys.stderr, flush=True)
        else:
            raise ValueError(f'{folder} holds no usable checkpoint ({damage})')


def read_seal(path: Path) -> dict:
    """Read the facts of `Seal`. Raises ValueError if there is no seal, or it is damaged."""
    try:
        seal = facts(Seal, read_sealed(path / SEAL, _SEALED_BEFORE), path / SEAL)
    except OSError as error:
        raise ValueError(f'{path} is not a complete checkpoint ({error})') from None
    if is_name(path.name) and int(path.name) != seal.nimg:
        raise ValueError(f'{path / SEAL} is of {seal.nimg} images, not of as many as its folder is named after')
    if not seal.checksum:   # under a checksum, a configuration that does not parse is of another version, not damaged
        parse_kept(seal.config, str(path / SEAL))
    return seal.model_dump()
