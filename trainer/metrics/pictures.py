"""What is compared: pictures that lie in shards or elsewhere, and those that a generator makes."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import nn

from trainer.config.sections import EvaluateConfig
from trainer.data.shards import Dataset, SampleReader
from trainer.engine.randomness import Draws, draw, seed_for, truncated_normal
from trainer.models import latents_of
from trainer.watch.grids import generate, label_counts


class Damaged(Exception):
    """A picture that cannot be read; it is named and not counted."""


class Pictures(Protocol):
    """Pictures that can be read in any order, from several threads."""

    count: int
    digest: str                        # of all that the features depend on
    size: tuple[int, int] | None       # (height, width), None: each its own
    labelled: bool

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Picture `index` [HWC] uint8 and its class. Raises Damaged."""


@dataclass(frozen=True)
class ShardPictures:
    """`most` pictures of a packed dataset, drawn by `seed`, or all; at `size` (height, width)."""

    dataset: Dataset
    size: tuple[int, int]
    most: int
    seed: int

    @cached_property
    def _numbers(self) -> np.ndarray:
        total = self.dataset.manifest.num_samples
        if total <= self.most:
            return np.arange(total)
        drawn = np.random.RandomState([self.seed, 1]).permutation(total)[:self.most]
        return np.sort(drawn)          # as they lie in the shards

    @cached_property
    def _reader(self) -> SampleReader:
        return SampleReader(self.dataset, self.size, max_open=4)

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.array([shard.first for shard in self.dataset.manifest.shards])

    @property
    def count(self) -> int:
        return len(self._numbers)

    @property
    def digest(self) -> str:
        everything = self.count == self.dataset.manifest.num_samples
        return self.dataset.manifest.digest() + ('' if everything else f'/{self.count} by seed {self.seed}')

    @property
    def labelled(self) -> bool:
        return bool(self.dataset.manifest.class_names)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        number = int(self._numbers[index])
        shard = int(np.searchsorted(self._firsts, number, side='right')) - 1
        sample, damaged = self._reader.read(shard, number - int(self._firsts[shard]))
        if damaged:                    # the reader went on to its neighbour, which would count twice
            raise Damaged(damaged[0])
        return sample.image, sample.label


@dataclass(frozen=True)
class Fakes:
    """`count` pictures of a generator, and the classes asked for, as frequent as in the data."""

    G: nn.Module
    class_counts: tuple[int, ...]
    count: int
    seed: int
    device: torch.device
    psi: float = 1.0
    psi_cutoff: int | None = None      # layers, from the first on, in which psi truncates; None: all
    truncation: float | None = None    # the largest |z|; None: any
    noise: str = 'const'               # of networks with styles; 'random': a function of the seed and of the first index

    def draws(self, indices: range, purpose: str = 'evaluate') -> Draws:
        """Latents [len(indices)], a function of the seed and of the first index."""
        draws = draw(self.seed, indices.start, purpose, len(indices), z_dim=self.G.z_dim, num_ws=self.G.num_ws,
                     style_mixing=0.0, class_counts=label_counts(self.G, self.class_counts), latents=latents_of(self.G))
        if self.truncation is None:
            return draws
        generator = torch.Generator().manual_seed(seed_for(self.seed, indices.start, purpose, 'truncated'))
        return replace(draws, z=truncated_normal(tuple(draws.z.shape), self.truncation, generator))

    def make(self, indices: range) -> tuple[np.ndarray, np.ndarray]:
        """[NHWC] uint8 and classes [N]."""
        draws = self.draws(indices)
        with torch.random.fork_rng([self.device] if self.device.type == 'cuda' else []):
            torch.manual_seed(seed_for(self.seed, indices.start, 'noise'))
            pictures = generate(self.G, draws, self.device, self.psi, self.psi_cutoff, self.noise)
        return pictures, draws.labels.numpy()


def fakes_of(G: nn.Module, class_counts: tuple[int, ...], config: EvaluateConfig, device: torch.device) -> Fakes:
    return Fakes(G, class_counts, config.images, config.seed, device, config.psi, config.psi_cutoff, config.truncation,
                 config.noise)
