"""This file keeps the exponential moving average of a network; half-life and ramp-up are counted in images."""

import torch
from torch import nn

from imago.trainer.config.load import EMAConfig
from imago.trainer.config.schedule import at


def ema_decay(nimg: int, batch: int, config: EMAConfig) -> float:
    """Return the share of the old average that one step of `batch` images keeps: 0.5 ** (batch / half-life).

    With `rampup`, the half-life is at most that share of the `nimg` images shown so far; before `start_kimg` it is 0.
    """
    if nimg < config.start_kimg * 1000:
        return 0.0
    half_life = at(config.half_life_kimg, nimg) * 1000
    if config.rampup is not None:
        half_life = min(half_life, nimg * config.rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Set each parameter to decay * average + (1 - decay) * network; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    if kept := list(average.buffers()):
        torch._foreach_copy_(kept, list(network.buffers()))
