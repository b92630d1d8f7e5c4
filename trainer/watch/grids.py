"""Pictures for people: grids from fixed latents, beside real ones."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.labels import to_one_hot
from trainer.engine.randomness import LATENTS, LEAST_TRUNCATION, Draws, draw, seed_for, truncated_normal
from trainer.models import latents_of
from trainer.models.batch_norm import standing_statistics
from trainer.models.several import SeveralGenerators
from trainer.ranks.progress import Progress

MOST_BATCHES, MOST_PSI = 10_000, 100.0


def to_pictures(images: Tensor) -> np.ndarray:
    """[NCHW] in [-1, 1] -> [NHWC] uint8, rounded and clamped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(pictures: np.ndarray, columns: int) -> Image.Image:
    """[NHWC] uint8 -> one picture, row by row; missing places stay black."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(sheet.reshape(rows * height, columns * width, channels).squeeze())


def fixed_draws(seed: int, count: int, G: nn.Module, class_counts: tuple[int, ...]) -> Draws:
    """The latents of a run's grids: the same from its first image to its last."""
    return draw(seed, 0, 'grid', count, z_dim=G.z_dim, num_ws=G.num_ws, style_mixing=0.0,
                class_counts=label_counts(G, class_counts), latents=latents_of(G))


def draws_for_seeds(seeds: Iterable[int], G: nn.Module, class_counts: Sequence[int], label: int | None = None,
                    truncation: float | None = None) -> Draws:
    """The latents of `imago sample --seeds`: one a seed, and one class a seed as frequent as in the data.

    label: the class (or generator, where G is several) of all of them. truncation: the largest |z|; None: any.
    """
    weights = torch.tensor(label_counts(G, class_counts) or [1], dtype=torch.float64)

    def one(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed_for(int(seed), 0, 'sample'))
        z = LATENTS[latents_of(G)](G.z_dim, generator=generator) if truncation is None else \
            truncated_normal((G.z_dim,), truncation, generator)
        return z, torch.multinomial(weights, 1, generator=generator)[0]

    z, labels = map(torch.stack, zip(*map(one, seeds), strict=True))
    if label is not None:
        labels = torch.full_like(labels, label)
    return Draws(z, z, torch.zeros_like(labels), labels)


def label_counts(G: nn.Module, class_counts: tuple[int, ...]) -> tuple[int, ...]:
    """How frequent each label of a draw for G is: its classes, or its generators if it is several; () if neither."""
    if isinstance(G, SeveralGenerators):
        return (1,) * len(G.generators)
    return class_counts if G.c_dim else ()


def check_truncation(G: nn.Module, psi: float, psi_cutoff: int | None, truncation: float | None) -> None:
    """ValueError unless G can be truncated so: in w, in its first `psi_cutoff` layers; and in z, below `truncation`."""
    normal = latents_of(G) == 'normal'
    if not abs(psi) <= MOST_PSI:
        raise ValueError(f'psi {psi} is not a number up to {MOST_PSI:g}; 0 to 1 is usual')
    if (psi != 1 or psi_cutoff is not None) and not G.num_ws:
        raise ValueError(f'psi {psi:g}: this generator has no w to truncate in; '
                         + ('use truncation' if normal else 'leave it out'))
    if psi_cutoff is not None and not 0 <= psi_cutoff <= G.num_ws:
        raise ValueError(f'psi-cutoff {psi_cutoff} is outside 0 to {G.num_ws}, the layers of this generator')
    if truncation is not None and not normal:
        raise ValueError(f'truncation {truncation:g}: the latents of this generator are uniform in [-1, 1], without tails to '
                         'draw again; leave it out')
    if truncation is not None and not truncation >= LEAST_TRUNCATION:
        raise ValueError(f'truncation {truncation:g} must be at least {LEAST_TRUNCATION}; 0.5 to 2 is usual')


@torch.no_grad()
def generate(G: nn.Module, draws: Draws, device: torch.device, truncation_psi: float = 1.0,
             truncation_cutoff: int | None = None, noise: str = 'const', batch: int = 16,
             title: str | None = None) -> np.ndarray:
    """Pictures [NHWC] uint8 at G's full size, `batch` at a time. Networks with styles take truncation and `noise`.

    title: of the progress that is told; None: none is.
    """
    several = isinstance(G, SeveralGenerators)
    styles = {'truncation_psi': truncation_psi, 'truncation_cutoff': truncation_cutoff, 'noise': noise}
    options = styles if G.num_ws else {}
    parts = []
    with Progress(title, len(draws.z), 'pictures') as progress:
        for start in range(0, len(draws.z), batch):
            part = draws[start:start + batch].to(device)
            if several:
                options['made_by'] = part.labels.tolist()
            images = G(part.z, to_one_hot(part.labels, G.c_dim), **options)
            parts.append(to_pictures(functional.interpolate(images, G.resolution)))  # nearest, while G grows
            progress.add(len(part.z))
    return np.concatenate(parts)


def check_batches(batches: int) -> None:
    """ValueError unless standing statistics can be taken of so many; 0: none are."""
    if not 0 <= batches <= MOST_BATCHES:
        raise ValueError(f'--standing-batches {batches} is not between 0 and {MOST_BATCHES}; 16 is usual')


@torch.no_grad()
def take_standing_statistics(G: nn.Module, class_counts: tuple[int, ...], batches: int, device: torch.device,
                             batch: int = 32) -> None:
    """Replace G's running batch-norm statistics by their means over `batches` of fakes. Brock et al. 2019, appendix D."""
    with standing_statistics(G), Progress('standing statistics', batches, 'batches') as progress:
        for number in range(batches):
            draws = draw(number, 0, 'standing', batch, z_dim=G.z_dim, num_ws=0, style_mixing=0.0,
                         class_counts=label_counts(G, class_counts), latents=latents_of(G)).to(device)
            G(draws.z, to_one_hot(draws.labels, G.c_dim))
            progress.add()
