"""Every random number of a step is a pure function of (seed, images shown, purpose), and comes from this file.

Nothing here depends on the number of ranks, and no generator's state needs to be kept.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imago.trainer.models.layers import LATENTS

LEAST_TRUNCATION = 0.01


@dataclass(frozen=True)
class Draws:
    """Holds the latent inputs of one batch. Rows can be sliced."""

    z: Tensor          # [N, z_dim]
    z_mix: Tensor      # [N, z_dim] second latents, for style mixing
    cutoff: Tensor     # [N] layers from this one on take the second latent's style
    labels: Tensor     # [N] classes of the fakes
    conditions: Tensor | None = None   # [N, d] of the fakes, in place of classes; None where they were not asked for

    def __getitem__(self, rows: slice) -> 'Draws':
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> 'Draws':
        """Copy all of it in one transfer, for which the host does not wait."""
        if device.type != 'cuda':
            return self._each(lambda tensor: tensor.to(device))
        # the longest elements come first, so that all are aligned
        tensors = sorted((tensor for tensor in vars(self).values() if tensor is not None), key=Tensor.element_size, reverse=True)
        whole = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])
        parts = whole.pin_memory().to(device, non_blocking=True).split([tensor.nbytes for tensor in tensors])
        moved = {id(tensor): part.view(tensor.dtype).view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)}
        return self._each(lambda tensor: moved[id(tensor)])

    def _each(self, of: Callable[[Tensor], Tensor]) -> 'Draws':
        return Draws(**{name: tensor if tensor is None else of(tensor) for name, tensor in vars(self).items()})


def seed_for(seed: int, nimg: int, *purpose: object) -> int:
    """Return a 63-bit seed for one purpose at one point of a run."""
    digest = hashlib.blake2b(repr((seed, nimg, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def draw(seed: int, nimg: int, purpose: str, batch: int, *, z_dim: int, num_ws: int,
         style_mixing: float, class_counts: tuple[int, ...], latents: str = 'normal') -> Draws:
    """Draw latents [batch, z_dim] for the whole global batch, and classes [batch] as frequent as in the data.

    Without `class_counts`, all classes are 0. latents: a distribution in LATENTS.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, nimg, purpose))
    z, z_mix = LATENTS[latents](2, batch, z_dim, generator=generator)
    mixed = torch.rand(batch, generator=generator) < style_mixing
    cutoff = torch.randint(1, max(num_ws, 2), (batch,), generator=generator)
    weights = torch.tensor(class_counts or (1,), dtype=torch.float64)
    labels = torch.multinomial(weights, batch, replacement=True, generator=generator)
    return Draws(z, z_mix, torch.where(mixed, cutoff, num_ws), labels)


def seed_micro_batch(seed: int, nimg: int, purpose: str, index: int) -> None:
    """Seed torch's own generators for the noise inside the networks; `index` counts over the global batch."""
    torch.manual_seed(seed_for(seed, nimg, purpose, index))


def truncated_normal(shape: tuple[int, ...], threshold: float, generator: torch.Generator) -> Tensor:
    """Draw N(0, 1), [*shape], and draw each value beyond +-threshold again until it is within. Brock et al. 2019, section 3.1.

    Raises ValueError for a threshold below LEAST_TRUNCATION, where almost all draws would be in vain.
    """
    if not threshold >= LEAST_TRUNCATION:
        raise ValueError(f'truncation threshold {threshold} is too small: take at least {LEAST_TRUNCATION}; 0.5 to 2 is usual')
    z = torch.randn(shape, generator=generator)
    while (beyond := z.abs() > threshold).any():
        z[beyond] = torch.randn(int(beyond.sum()), generator=generator)
    return z
