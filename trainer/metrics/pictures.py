"""Metrics compare pictures that lie in shards or elsewhere, and pictures that a generator makes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.data.shards import Dataset, SampleReader
from imago.trainer.engine.randomness import seed_for
from imago.trainer.games.makers import Inputs, Maker, Sampling, generate
from imago.trainer.metrics.settings import fakes_on


class Damaged(Exception):
    """A picture cannot be read; it is named and not counted."""


class Pictures(Protocol):
    """These pictures can be read in any order, from several threads."""

    @property
    def count(self) -> int: ...

    @property
    def digest(self) -> str:
        """A digest of all on which the features depend."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width); None: each picture has its own."""

    @property
    def labelled(self) -> bool: ...

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Read picture `index` [HWC] uint8 and its class. Raises Damaged."""


@dataclass(frozen=True)
class ShardPictures:
    """Reads the pictures of a packed dataset at `size` (height, width): all, or `most` of them, which are drawn by `seed`."""

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
        return np.sort(drawn)          # the order is that in the shards

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
        crop = f'/crop {self.dataset.crop}' if self.dataset.crop else ''
        return self.dataset.manifest.digest() + crop + ('' if everything else f'/{self.count} by seed {self.seed}')

    @property
    def labelled(self) -> bool:
        return bool(self.dataset.manifest.class_names)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        number = int(self._numbers[index])
        shard = int(np.searchsorted(self._firsts, number, side='right')) - 1
        sample, damaged = self._reader.read(shard, number - int(self._firsts[shard]))
        if damaged:                    # the reader returned its neighbour instead, which would count twice
            raise Damaged(damaged[0])
        return sample.image, sample.label


@dataclass(frozen=True)
class Fakes:
    """Makes `count` pictures of a maker, whose classes are as frequent as in the data."""

    maker: Maker
    count: int
    seed: int
    sampling: Sampling = Sampling()    # random noise is a function of the seed and of the first index

    def draws(self, indices: range, purpose: str = 'evaluate') -> Inputs:
        """Draw inputs [len(indices)] as a function of the seed and of the first index."""
        return self.maker.draw(self.seed, indices.start, purpose, len(indices), self.sampling.truncation)

    def make(self, indices: range) -> tuple[np.ndarray, np.ndarray]:
        """Make pictures [NHWC] uint8, and return their classes [N] too."""
        draws, device = self.draws(indices), self.maker.device
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            torch.manual_seed(seed_for(self.seed, indices.start, 'noise'))
            pictures = generate(self.maker, draws, self.sampling)
        return pictures, draws.labels.numpy()


def fakes_of(maker: Maker, config: EvaluateConfig) -> Fakes:
    """Return the fakes that `config` asks for."""
    sampling = Sampling(config.psi, config.psi_cutoff, config.truncation, config.noise)
    return Fakes(maker, fakes_on(config, maker.device.type), config.seed, sampling)
