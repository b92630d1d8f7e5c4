"""Perceptual path length says how much pictures change along a small step between two latents. Karras et al. 2019, section 4.1.

Published figures use LPIPS on VGG16. Here the distance is that of an extractor's features scaled to length 1, and the score
bears the extractor's name: compare it only with others of this name. Networks with styles add the constant noise map.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from imago.trainer.engine.randomness import seed_for
from imago.trainer.metrics.extractors import Extractor
from imago.trainer.metrics.features import Rows, over_ranks, resizing_threads
from imago.trainer.metrics.pictures import Fakes

EPSILON = 1e-4
BATCH = 16   # number of pictures that the generator makes at a time
KEPT = 0.01, 0.99   # distances between these quantiles count, as in published figures


def perceptual_path_lengths(fakes: Fakes, extractor: Extractor, title: str, stopped: Callable[[], bool]) -> np.ndarray | None:
    """Return squared distances over epsilon^2 [n], without both tails, along the maker's own way between latents.

    All ranks call it; ranks other than 0 get None.
    """
    with resizing_threads() as pool:
        def work(indices: range) -> Rows:
            resized = []
            for images in _ends(fakes, indices):                                      # [2B, C, H, W] in [-1, 1]
                pictures = ((images + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()   # the steps are too tiny for rounding
                resized += pool.map(extractor.resize, pictures)
            features = extractor(resized)['features'].astype(np.float64)
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            return {'lengths': ((features[::2] - features[1::2]) ** 2).sum(1) / EPSILON ** 2}
        rows = over_ranks(work, fakes.count, title, stopped)
    if rows is None:
        return None
    low, high = np.quantile(rows['lengths'], KEPT)
    return rows['lengths'][(low <= rows['lengths']) & (rows['lengths'] <= high)]


@torch.no_grad()
def _ends(fakes: Fakes, indices: range) -> Iterator[Tensor]:
    """Yield pictures [2B, C, H, W] in pairs of rows: at t and at t + epsilon of the way between two latents of one class.

    t is uniform in [0, 1].
    """
    device = fakes.maker.device
    twice = torch.arange(len(indices)).repeat_interleave(2)
    first, second = (fakes.draws(indices, purpose)[twice].to(device) for purpose in ('path', 'path end'))
    generator = torch.Generator().manual_seed(seed_for(fakes.seed, indices.start, 'path position'))
    where = torch.rand(len(indices), 1, generator=generator)
    where = torch.cat([where, where + EPSILON], dim=1).view(-1, 1).to(device)   # [2N, 1]
    for start in range(0, len(where), BATCH):
        rows = slice(start, start + BATCH)
        yield fakes.maker.between(first[rows], second[rows], where[rows], fakes.sampling)
