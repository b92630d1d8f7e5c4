"""This module writes the `imago train` command that `imago pack` ends with: one that starts on this dataset and machine."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from imago.trainer.config.division import fitting_lanes
from imago.trainer.config.load import Config, load_config
from imago.trainer.config.resolution import base_and_doublings, largest_of_aspect, largest_square, nearest_sizes
from imago.trainer.config.sections import CONTINUOUS
from imago.trainer.data.manifest import SINGLE, Manifest

SMALL, MEDIUM, LARGE = 'stylegan2-64', 'stylegan2-256', 'stylegan2-512'   # configurations
LONGEST_SIDE = 1024    # px, the most that is published for them
LONGEST_ON_CPU = 64    # px, that a CPU learns in a day or two
LONGEST_CROP = 256     # px
LONGEST_BASE = 64      # px, of the coarsest maps; D's last layers grow with their area
FEW = 20_000           # pictures; with fewer D overfits without augmentation (Karras et al. 2020, figure 1)
MOST_AT_ONCE = 16      # pictures of a micro-batch
# twice what dry runs of MEDIUM and LARGE estimate, without and for each picture of a micro-batch
BYTES, BYTES_A_PIXEL = 2e9, 4500


def memory_of_gpus() -> list[int]:
    """Return the bytes of each GPU that torch can use here."""
    import torch  # it takes seconds, and packing itself needs none of it
    return [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]


def train_command(out: str, manifest: Manifest, gpus: Sequence[int] = ()) -> str:
    """Return a command that starts on this dataset, on `gpus` of so many bytes or on the CPU. ValueError says why there is none.

    It has passed the rules of configurations.
    """
    if manifest.domains != SINGLE:
        raise ValueError('pairs are for games of two domains, which take data.path=' + out)
    crop, size = _sizes(manifest, bool(gpus))
    name = SMALL if not gpus else MEDIUM if max(size) <= 256 else LARGE
    published = load_config(name)
    path = str(Path(out).absolute()) if ':' in out or out.startswith('~') else out  # else it reads as a URL or a home folder
    overrides = [f'data.path={_as_yaml(path)}', f'run_dir={_free_run_dir(path)}']
    overrides += [f'data.conditional={given}'] if (given := _conditional(manifest)) else []
    overrides += [f'data.crop={crop[0]}x{crop[1]}'] if crop else []
    if size != published.data.resolution:
        weight = 0.0002 * size[0] * size[1] / published.batch   # as the README recommends
        overrides += [f'data.resolution={size[0]}x{size[1]}', f'regularizers.r1={weight:.1g}']
    overrides += ['augment.name=ada'] if manifest.num_samples < FEW else []
    ranks = max(count for count in range(1, max(len(gpus), 1) + 1) if published.batch % count == 0)
    if gpus and (micro_batch := _micro_batch(published, size, min(gpus), ranks)) != published.micro_batch:
        overrides.append(f'micro_batch={micro_batch}')
    config = load_config(name, overrides)
    config.check_world(ranks)
    fitting_lanes(config, ranks, manifest.num_samples)
    if config.data.path != path:
        raise ValueError(f'{out!r} is a name that no command line can give; rename it')
    return f'imago train {name} {f"--gpus {ranks} " if ranks > 1 else ""}{shlex.join(overrides)}'


def _sizes(manifest: Manifest, gpu: bool) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Return the (height, width) of the crop, None for whole pictures, and that of the networks. ValueError if there is none."""
    if manifest.resolution is None:
        side = min(largest_square(min(manifest.smallest)), LONGEST_CROP)
        shown = side if gpu else min(side, LONGEST_ON_CPU)
        return (side, side), (shown, shown)
    limits = (LONGEST_SIDE,) if gpu else (LONGEST_ON_CPU, LONGEST_SIDE)
    sizes = (largest_of_aspect(manifest.resolution, limit) for limit in limits)
    size = next((size for size in sizes if size and _is_moderate(size)), None)
    if size is None:
        height, width = manifest.resolution
        near = ' or '.join(f'{h}x{w}' for h, w in nearest_sizes(manifest.resolution) if _is_moderate((h, w))) or '256'
        raise ValueError(f'no network of moderate size makes {height}x{width}, nor smaller ones of this aspect; '
                         f'pack again with --resolution {near}')
    return None, size


def _conditional(manifest: Manifest) -> str:
    """Return what the pictures can be conditioned on, as `data.conditional` has it, or ''."""
    if len(manifest.condition_shape or ()) == 1:
        return CONTINUOUS
    used = sum(count > 0 for count in manifest.class_counts)
    return 'true' if 2 <= used <= manifest.num_samples / 2 else ''   # about one class a picture teaches nothing


def _micro_batch(published: Config, size: tuple[int, int], memory: int, ranks: int) -> int:
    """Return the largest power of two that a GPU of so many bytes can take, and that is of use."""
    fit = int((memory - BYTES) / (BYTES_A_PIXEL * size[0] * size[1]))
    return 1 << min(max(fit, 1), MOST_AT_ONCE, published.batch // ranks).bit_length() - 1


def _free_run_dir(path: str) -> str:
    """Return a folder in runs/ that is named like the dataset and is not there yet."""
    name = re.sub(r'[^A-Za-z0-9._-]+', '-', Path(path).resolve().name).strip('-.') or 'run'
    names = (f'runs/{name}{suffix}' for suffix in ('', *(f'-{number}' for number in range(2, 1000))))
    return next((run_dir for run_dir in names if not Path(run_dir).exists()), f'runs/{name}')


def _is_moderate(size: tuple[int, int]) -> bool:
    return max(size) <= LONGEST_SIDE and max(base_and_doublings(size)[0]) <= LONGEST_BASE


def _as_yaml(text: str) -> str:
    """Return `text`, quoted if YAML would read it as a number, a date or another type."""
    try:
        return text if yaml.safe_load(text) == text else json.dumps(text)
    except yaml.YAMLError:
        return json.dumps(text)
