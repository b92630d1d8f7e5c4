"""A trained generator outside its run: `safetensors` weights and a JSON file that says what to build. No pickles."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from trainer import models
from trainer.checkpoint import SEAL, find_damage, list_checkpoints, read_seal
from trainer.checkpoint_reader import load_tensors

WEIGHTS, ABOUT = 'generator.safetensors', 'generator.json'


def write_export(G: nn.Module, about: dict, folder: Path) -> None:
    """Write `folder`/generator.safetensors and generator.json; `about` as `describe` returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in G.state_dict().items()}, folder / WEIGHTS)
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + '\n')


def describe(path: str | Path) -> tuple[Path, dict]:
    """Find the generator in an export, a checkpoint, or a run folder (its newest whole checkpoint).

    Returns the folder with its weights, and {model, options, class_names, class_counts, nimg}. ValueError if there is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f'no such folder: {folder}; give a run folder, a checkpoint or an export')
    if (folder / ABOUT).is_file():
        return folder, _checked(json.loads((folder / ABOUT).read_text()), folder / ABOUT)
    candidates = [folder] if (folder / SEAL).is_file() else list_checkpoints(folder / 'checkpoints')[::-1]
    damage = 'it has none'
    for checkpoint in candidates:
        damage = find_damage(checkpoint)
        if damage is None:
            seal = read_seal(checkpoint)
            return checkpoint, _checked({**seal['generator'], 'nimg': seal['nimg']}, checkpoint / SEAL)
    raise ValueError(f'{folder} holds no usable checkpoint ({damage}); give a run folder, a checkpoint or an export')


def _checked(about: dict, path: Path) -> dict:
    if not {'model', 'options', 'class_names', 'class_counts', 'nimg'} <= about.keys() or about['model'] not in models.MODELS:
        raise ValueError(f'{path} does not describe a generator; export it again')
    return about


def load_generator(path: str | Path, device: str | torch.device = 'cpu') -> nn.Module:
    """The EMA generator of an export, a checkpoint or a run folder, ready to sample from.

    Call it as G(z [N, z_dim], c [N, c_dim], truncation_psi=1.0) -> images [NCHW] in [-1, 1]. ValueError if there is none.
    """
    return build_generator(*describe(path), device)


def build_generator(folder: Path, about: dict, device: str | torch.device = 'cpu') -> nn.Module:
    """The generator that `describe` has found, without reading the checkpoint's checksums once more."""
    G = models.build_generator(about['model'], about['options']).requires_grad_(False).eval()
    try:
        if (folder / WEIGHTS).is_file():
            G.load_state_dict(load_file(folder / WEIGHTS))
        else:
            load_tensors({'G_ema': G.state_dict()}, folder, no_dist=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f'the weights in {folder} are of another model than it says: {str(error).splitlines()[0]}') from error
    return G.to(device)
