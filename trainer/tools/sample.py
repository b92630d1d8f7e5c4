"""`imago sample`: pictures from a trained generator, the same for the same seeds."""

import argparse
import math
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trainer.command import Parser, tell_error
from trainer.export import build_generator, describe
from trainer.images import generate, grid, label_counts, take_standing_statistics
from trainer.labels import class_index
from trainer.randomness import Draws, seed_for, truncated_normal

MOST_SEEDS = 10_000   # they are all in memory before the first is written


def parse_seeds(text: str) -> list[int]:
    """`0-3,10` -> [0, 1, 2, 3, 10]. ValueError names what it cannot read."""
    seeds = []
    for part in text.split(','):
        match = re.fullmatch(r'(\d+)(?:-(\d+))?', part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f'--seeds {text}: {part!r} is not a number or a rising range; write e.g. 0-15 or 3,7,100-103')
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST_SEEDS:
            raise ValueError(f'--seeds {text}: {last - first + 1} pictures in one range; ask for at most {MOST_SEEDS} at a time')
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def draw_for_seeds(seeds: list[int], z_dim: int, class_counts: list[int], label: int | None,
                   truncation: float | None = None) -> Draws:
    """One latent a seed, and one class a seed as frequent as in the data, unless `label` says which.

    truncation: the largest |z|; None: any.
    """
    weights = torch.tensor(class_counts or [1], dtype=torch.float64)

    def one(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed_for(seed, 0, 'sample'))
        z = torch.randn(z_dim, generator=generator) if truncation is None else truncated_normal((z_dim,), truncation, generator)
        return z, torch.multinomial(weights, 1, generator=generator)[0]

    z, labels = map(torch.stack, zip(*map(one, seeds), strict=True))
    if label is not None:
        labels = torch.full_like(labels, label)
    return Draws(z, z, torch.zeros_like(labels), labels)


def sample(options: argparse.Namespace) -> list[Path]:
    """Write the pictures; returns their paths. ValueError for what the user can mend."""
    seeds = parse_seeds(options.seeds)
    folder, about = describe(options.source)
    label = None if options.label is None else class_index(options.label, about['class_names'])
    if not math.isfinite(options.psi):
        raise ValueError(f'--psi {options.psi} is not a number; 0 to 1 is usual')
    if options.truncation is not None and not options.truncation > 0:
        raise ValueError(f'--truncation {options.truncation} must be above 0; 0.5 to 2 is usual')
    if options.columns < 1:
        raise ValueError(f'--columns {options.columns} is below 1')
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f'--out {out} is a file; give a folder')
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    G = build_generator(folder, about, device)
    if options.psi != 1 and not G.num_ws:
        raise ValueError(f'--psi {options.psi}: this generator has no w to truncate in; use --truncation')
    counts = label_counts(G, about['class_counts'])
    if options.standing_batches:
        take_standing_statistics(G, counts, options.standing_batches, device)
    draws = draw_for_seeds(seeds, G.z_dim, counts, label, options.truncation)
    pictures = generate(G, draws, device, options.psi)
    out.mkdir(parents=True, exist_ok=True)
    if options.grid:
        paths = [out / f'grid-seeds{seeds[0]}-{seeds[-1]}-psi{options.psi:g}.png']
        grid(pictures, options.columns).save(paths[0])
        return paths
    paths = [out / f'seed{seed:06d}.png' for seed in seeds]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture.squeeze()).save(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog='imago sample', description=__doc__)
    parser.add_argument('source', help='a run folder (its newest checkpoint), a checkpoint, or an export')
    parser.add_argument('--out', default='samples', help='folder for the pictures (default: %(default)s)')
    parser.add_argument('--seeds', default='0-31', help='numbers and ranges, e.g. 0-15,42 (default: %(default)s)')
    parser.add_argument('--psi', type=float, default=1.0, help='truncation psi: 1 all variety, 0 the average (default: %(default)s)')
    parser.add_argument('--truncation', type=float, help='draw latents again until |z| is below this, as BigGAN does')
    parser.add_argument('--standing-batches', type=int, default=0, metavar='N',
                        help='take batch-norm statistics anew from N batches of fakes (default: as kept while training)')
    parser.add_argument('--class', dest='label', help='name or number of a class; default: as frequent as in the data')
    parser.add_argument('--grid', action='store_true', help='one PNG with all pictures instead of one each')
    parser.add_argument('--columns', type=int, default=8, help='of the grid (default: %(default)s)')
    try:
        paths = sample(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        tell_error('imago sample', error)
        return 2
    print(f'wrote {paths[0]}' if len(paths) == 1 else f'wrote {len(paths)} pictures: {paths[0]} to {paths[-1].name}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
