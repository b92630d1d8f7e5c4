"""An export makes pictures without its run. It has `safetensors` weights, and JSON that says what to build; it has no pickles."""

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from imago.trainer.data.durable import write_bytes
from imago.trainer.data.locations import scheme_of
from imago.trainer.data.reading import open_regular
from imago.trainer.data.sealed import facts, read_sealed, write_sealed
from imago.trainer.games import GAMES
from imago.trainer.games.makers import Maker
from imago.trainer.runs.checkpoint import find_damage
from imago.trainer.runs.checkpoint_reader import CheckpointReader, load_tensors
from imago.trainer.runs.description import OLDER, Description, build_networks, without_content, written
from imago.trainer.runs.generator_folder import ABOUT, WEIGHTS, check_new, check_source
from imago.trainer.runs.seal import SEAL, newest_of, read_seal

MOST_HEADER = 1 << 27   # bytes before the tensors; safetensors itself accepts up to 10**8


def write_export(maker: Maker, about: dict, out: Path) -> None:
    """Make generator.safetensors and generator.json in `out`, a new or empty folder; `about` is what `describe` returns.

    After an error, neither is left. Raises ValueError if `out` is something else, OSError if it cannot be written.
    """
    check_new(out)
    weights = save({name: tensor.contiguous().clone() for name, tensor in as_one(maker.networks).state_dict().items()})
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / WEIGHTS, weights)
        write_sealed(out / ABOUT, written(about) | {'weights_sha256': hashlib.sha256(weights).hexdigest()})
    except BaseException:
        (out / WEIGHTS).unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):     # mkdir may have failed before it made this folder
                folder.rmdir()
        raise


def describe(path: str | Path) -> tuple[Path, dict]:
    """Find the networks of a maker in an export, a checkpoint, or a run folder (its newest whole checkpoint).

    Returns the folder with its weights, and the facts of `Description`. Warns on stderr of what is passed over, and of what
    cannot be checked. Raises ValueError if there is none, or it is damaged. Nothing is built yet.
    """
    folder = Path(path)
    check_source(folder)
    if os.path.lexists(folder / ABOUT):
        about = _of_export(folder)
    elif os.path.lexists(folder / SEAL):
        folder = folder.resolve()   # the link `best` may point elsewhere in a moment
        about = _of_checkpoint(folder)
    else:
        folder, about = newest_of(folder / 'checkpoints', _of_checkpoint)
    if not about['checksum']:
        print(f'warning: what {folder} says of itself has no checksum, as it is of an older version: it cannot be checked; '
              'imago export writes one', file=sys.stderr, flush=True)
    return folder, about


def _of_export(folder: Path) -> dict:
    about = facts(Description, read_sealed(folder / ABOUT, OLDER), folder / ABOUT).model_dump()
    whole = as_one(without_content(about))
    with open_regular(folder / WEIGHTS) as file:
        size, needed = os.fstat(file.fileno()).st_size, sum(tensor.nbytes for tensor in whole.state_dict().values())
    if not needed <= size <= needed + MOST_HEADER:
        raise ValueError(f'{folder / WEIGHTS} has {size} bytes, while the weights of the model that {ABOUT} describes have '
                         f'{needed}: it is damaged, or of another model')
    return about


def _of_checkpoint(folder: Path) -> dict:
    """Return the facts of `Description`. Raises ValueError if the checkpoint is damaged in any way."""
    if damage := find_damage(folder):
        raise ValueError(damage)
    seal = read_seal(folder)
    known = {key: seal[key] for key in ('nimg', 'checksum')} | {'data': _data_of(seal)}
    about = facts(Description, seal['generator'] | known, folder / SEAL).model_dump()
    sizes = CheckpointReader(folder).sizes()
    for name, network in without_content(about).items():
        for key, tensor in network.state_dict().items():
            if sizes.get(f'{name}_ema.{key}') != tensor.shape:
                raise ValueError(f'the weights in {folder} are of another model than its seal says: {name}_ema.{key} is not '
                                 f'{list(tensor.shape)}')
    return about


def _data_of(seal: dict) -> str:
    """Say on which dataset a run was trained: the last part of its location, which has no secret, its pictures and digest."""
    path = seal['config'].get('data', {}).get('path')
    name = Path(path).name if isinstance(path, str) and not scheme_of(path) else 'a dataset elsewhere'
    return f'{name}, {seal["pictures"]} pictures, digest {seal["dataset"][:16]}'


def load_generator(path: str | Path, device: str | torch.device = 'cpu') -> nn.Module:
    """Return the generator of `open_maker`. Raises ValueError if its game has none that is called G.

    Call it as G(z [N, z_dim], c [N, c_dim], truncation_psi=1.0) -> images [NCHW] in [-1, 1]; the same inputs give the same
    images.
    """
    networks = open_maker(path, device)[0].networks
    if 'G' not in networks:
        raise ValueError(f'{path} has no generator G but {", ".join(networks)}; take open_maker')
    return networks['G']


def open_maker(path: str | Path, device: str | torch.device = 'cpu') -> tuple[Maker, dict]:
    """Return the maker of an export, a checkpoint or a run folder, and the facts of `Description`.

    Raises ValueError if there is none, or it is damaged.
    """
    while True:
        folder, about = describe(path)
        if (maker := build_maker(folder, about, device)) is not None:
            return maker, about


def build_maker(folder: Path, about: dict, device: str | torch.device = 'cpu') -> Maker | None:
    """Build the maker that `describe` has found. Returns None if a run has pruned the checkpoint since: describe it again."""
    networks = build_networks(about)
    try:
        if os.path.lexists(folder / ABOUT):
            as_one(networks).load_state_dict(_read_weights(folder / WEIGHTS, about))
        else:
            load_tensors({f'{name}_ema': network.state_dict() for name, network in networks.items()}, CheckpointReader(folder),
                         no_dist=True)
    except (RuntimeError, SafetensorError) as error:
        why = ' '.join(str(error).split())[:200]
        raise ValueError(f'the weights in {folder} are of another model than it says: {why}') from error
    except (ValueError, OSError):
        if not folder.exists():
            return None
        raise
    return GAMES[about['game']].maker({name: network.to(device) for name, network in networks.items()}, about['class_counts'],
                                      about['conditions'])


def as_one(networks: dict[str, nn.Module]) -> nn.Module:
    """Return the module whose tensors are exported: a lone generator itself, as in older files, or all networks by name."""
    return networks['G'] if networks.keys() == {'G'} else nn.ModuleDict(networks)


def _read_weights(path: Path, about: dict) -> dict[str, torch.Tensor]:
    with open_regular(path) as file:
        content = file.read()
    if about['checksum'] and hashlib.sha256(content).hexdigest() != about['weights_sha256']:
        raise ValueError(f'{path} is damaged: its SHA-256 is not the one in {ABOUT}; export it again')
    return load(content)
