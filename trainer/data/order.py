"""Which picture is shown is a pure function of (seed, manifest, lanes, global image index), whatever the world size.

Global image i belongs to lane i % L and is that lane's image number i // L. In epoch e the shards are permuted by
(seed, e) and the samples of each shard by (seed, e, shard). This gives a virtual list of all N samples, cut into L segments:
segment s is [s*N//L, (s+1)*N//L). Lane l reads segment (l + e) % L, so over L epochs every lane reads all N.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np

from imago.trainer.data.manifest import Manifest

CACHED_EPOCHS = 4


class Order:
    """Raises ValueError if there are more lanes than samples. A text as a seed gives a second dataset an order of its own."""

    def __init__(self, manifest: Manifest, lanes: int, seed: int | str):
        if not 1 <= lanes <= manifest.num_samples:
            raise ValueError(f'data.lanes={lanes} is outside 1 to {manifest.num_samples}, the number of samples in the '
                             f'dataset; set data.lanes to at most {manifest.num_samples} or pack more pictures')
        self.sizes = np.array([shard.samples for shard in manifest.shards])
        self.num_samples = manifest.num_samples
        self.lanes = lanes
        self.seed = seed
        self._shards = lru_cache(CACHED_EPOCHS)(self._shards_of_epoch)
        # A lane is in one shard at a time, and lanes are at most two epochs apart.
        self._samples = lru_cache(2 * lanes)(self._samples_of_shard)

    def locate(self, index: int) -> tuple[int, int]:
        """Return (shard, number of the sample in that shard) for a global image index."""
        number, lane = divmod(index, self.lanes)
        # Unrolled over epochs, lane l walks a line from S(l) on; segment x is [S(x), S(x+1)) with S(x) = x*N // L.
        place = number + lane * self.num_samples // self.lanes
        segment = ((place + 1) * self.lanes - 1) // self.num_samples
        epoch, place = segment - lane, place % self.num_samples
        shards, ends = self._shards(epoch)
        turn = int(np.searchsorted(ends, place, side='right'))
        shard = int(shards[turn])
        return shard, int(self._samples(epoch, shard)[place - ends[turn]])  # negative, so counted from the end

    def flip(self, index: int) -> bool:
        """Return whether global image `index` is shown mirrored, by a fair coin."""
        return bool(_digest(self.seed, 'flip', index)[0] & 1)

    def place(self, index: int) -> tuple[float, float]:
        """Return where in its picture the crop of global image `index` lies, see `place_of`."""
        return place_of(self.seed, 'crop', index)

    def partner(self, index: int) -> int:
        """Return a number from 0 on, drawn by `index`, which chooses the partner from the class of global image `index`."""
        return int.from_bytes(_digest(self.seed, 'partner', index)[:8], 'little')

    def lender(self, index: int) -> int:
        """Return a number from 0 on, drawn by `index`, which chooses the sample that lends its condition to the fake there."""
        return int.from_bytes(_digest(self.seed, 'lender', index)[:8], 'little')

    def _shards_of_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        shards = _permutation(len(self.sizes), self.seed, 'shards', epoch)
        return shards, np.cumsum(self.sizes[shards])

    def _samples_of_shard(self, epoch: int, shard: int) -> np.ndarray:
        return _permutation(int(self.sizes[shard]), self.seed, 'samples', epoch, shard)


def batch_indices(nimg: int, batch: int, lanes: int, rank: int, world: int) -> np.ndarray:
    """Return the global image indices, int64 [batch / world], that `rank` reads of the batch whose first image is `nimg`.

    The batch is laid out by lane: position lane * (batch / lanes) + k is image nimg + k * lanes + lane. Each rank
    takes an equal run of positions, so whole lanes. Raises ValueError if lanes, batch, ranks or `nimg` do not divide so.
    """
    if lanes % world:
        fit = math.lcm(lanes, world)
        raise ValueError(f'data.lanes={lanes} is not a multiple of the {world} ranks; '
                         f'use e.g. data.lanes={fit} and batch={max(1, -(-batch // fit)) * fit}')
    if batch < 1 or batch % lanes:
        raise ValueError(f'batch={batch} is not a positive multiple of data.lanes={lanes}; '
                         f'use e.g. batch={max(1, -(-batch // lanes)) * lanes}')
    if nimg < 0 or nimg % lanes:
        raise ValueError(f'nimg={nimg} is not a multiple of data.lanes={lanes} from 0 on; '
                         f'start at {max(0, nimg // lanes) * lanes}')
    share = batch // world
    lane, k = np.divmod(np.arange(rank * share, (rank + 1) * share), batch // lanes)
    return nimg + k * lanes + lane


def place_of(*key: int | str) -> tuple[float, float]:
    """Draw the place of a crop by `key`: (down, across), each a share from 0 to below 1 of the possible places."""
    words = _digest(*key)
    down, across = (int.from_bytes(words[first:first + 4], 'little') / 2**32 for first in (0, 4))
    return down, across


def _permutation(n: int, *key: int | str) -> np.ndarray:
    """Sort raw Philox words: numpy keeps those the same for ever, but not the results of `Generator.permutation`."""
    words = np.random.Philox(key=int.from_bytes(_digest(*key), 'little')).random_raw(n)
    return np.argsort(words, kind='stable')


def _digest(*key: int | str) -> bytes:
    return hashlib.blake2b('/'.join(map(str, key)).encode(), digest_size=16).digest()
