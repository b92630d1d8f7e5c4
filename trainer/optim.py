"""Adam, corrected for lazy regularisation."""

import torch
from torch import nn

from trainer.config import OptimConfig


def make_adam(network: nn.Module, lr: float, config: OptimConfig, reg_interval: int | None) -> torch.optim.Adam:
    """Adam for a network whose regularisation runs as an extra step every `reg_interval` steps (None: never).

    The extra steps are compensated by c = k / (k + 1): lr * c, beta ** c. Karras et al. 2020, appendix B.
    Its state exists from the start, so that a checkpoint always has a place for every tensor.
    """
    c = 1.0 if reg_interval is None else reg_interval / (reg_interval + 1)
    betas = tuple(beta ** c for beta in config.betas)
    adam = torch.optim.Adam(network.parameters(), lr=lr * c, betas=betas, eps=config.eps, foreach=True)
    for parameter in network.parameters():
        adam.state[parameter] = {'step': torch.zeros((), dtype=torch.float32),
                                 'exp_avg': torch.zeros_like(parameter), 'exp_avg_sq': torch.zeros_like(parameter)}
    return adam
