"""This module gives what changes over a run as a pure function of the images shown, so nothing needs to be remembered."""

import math
from dataclasses import dataclass

from imago.trainer.config.load import Config
from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.config.sections import Ramp


@dataclass(frozen=True)
class Stage:
    """A stage has the sizes and learning rates of one step."""

    lod: float          # level of detail: 0 is full size, 1 half of it ...; in between, the finer level fades in
    side: int           # px, shorter side of the pictures
    batch: int          # images, over all ranks
    micro_batch: int    # images a forward pass on one rank
    g_lr: float
    d_lr: float


def stage_at(config: Config, resolution: tuple[int, int], nimg: int) -> Stage:
    """Return the stage after `nimg` images for networks of full size `resolution`, (height, width) in px.

    Each resolution trains for `stage_kimg`, then the next one fades in over `fade_kimg`. Karras et al. 2018, section 3.
    """
    side, lod, optim = min(resolution), 0.0, config.optim
    batch, micro_batch, g_lr, d_lr = config.batch, config.micro_batch, at(optim.g_lr, nimg), at(optim.d_lr, nimg)
    growth = config.growth
    if growth is not None:
        stage, fade = growth.stage_kimg * 1000, growth.fade_kimg * 1000
        turn, into = divmod(nimg, stage + fade)
        lod = max(math.log2(side / growth.start_resolution) - turn - max(into - stage, 0) / fade, 0.0)
        side >>= math.floor(lod)
        batch, micro_batch = growth.batch.get(side, batch), growth.micro_batch.get(side, micro_batch)
        g_lr, d_lr = growth.g_lr.get(side, g_lr), growth.d_lr.get(side, d_lr)
    return Stage(lod, side, batch, micro_batch, g_lr, d_lr)


def check_growth(config: Config, resolution: tuple[int, int]) -> None:
    """Raise ValueError unless networks of full size `resolution`, (height, width) in px, can grow as configured."""
    if config.growth is None:
        return
    doublings, side, start = base_and_doublings(resolution)[1], min(resolution), config.growth.start_resolution
    sides = [side >> i for i in range(doublings, -1, -1)]
    if start not in sides:
        raise ValueError(f'growth.start_resolution={start} is no stage of pictures with a shorter side of {side} px; '
                         f'take one of {", ".join(map(str, sides))}')
    for key in ('batch', 'micro_batch', 'g_lr', 'd_lr'):
        # sizes above the full one are for runs on larger pictures
        for unknown in sorted(size for size in getattr(config.growth, key) if size < side and size not in sides):
            raise ValueError(f'growth.{key}.{unknown}: no stage has a shorter side of {unknown} px; '
                             f'there are {", ".join(map(str, sides))}')


def at(value: float | Ramp, nimg: int) -> float:
    """Return the number itself, or the value of a ramp after `nimg` images: half a cosine from its start to its end."""
    if not isinstance(value, Ramp):
        return value
    share = min(nimg / (value.kimg * 1000), 1.0)
    return value.end + (value.start - value.end) * (1 + math.cos(math.pi * share)) / 2
