"""Adam, corrected for lazy regularisation."""

import torch
from torch import nn

from trainer.config import OptimConfig
from trainer.schedule import at


def make_adam(network: nn.Module, config: OptimConfig) -> torch.optim.Adam:
    """Adam whose state exists from the start, so that a checkpoint always has a place for every tensor.

    `set_rates` gives it its rates before each step.
    """
    adam = torch.optim.Adam(network.parameters(), eps=config.eps, foreach=True)
    for parameter in network.parameters():
        adam.state[parameter] = {'step': torch.zeros((), dtype=torch.float32),
                                 'exp_avg': torch.zeros_like(parameter), 'exp_avg_sq': torch.zeros_like(parameter)}
    return adam


def set_rates(adam: torch.optim.Adam, lr: float, config: OptimConfig, nimg: int, lazy: float | None) -> None:
    """For a network whose regularisation is an extra step after every `lazy` main steps (None: it is none).

    The extra steps are compensated by c = k / (k + 1): lr * c, beta ** c. Karras et al. 2020, appendix B.
    """
    c = 1.0 if lazy is None else lazy / (lazy + 1)
    beta1, beta2 = config.betas
    if config.beta2_ramp is not None:
        beta2 = at(config.beta2_ramp, nimg)
    for group in adam.param_groups:
        group['lr'], group['betas'] = lr * c, (beta1 ** c, beta2 ** c)


def restart(adam: torch.optim.Adam) -> None:
    """Forget all moments, as at the start of a new resolution. Karras et al. 2018, appendix A.1."""
    for state in adam.state.values():
        for tensor in state.values():
            tensor.zero_()
