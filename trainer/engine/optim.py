"""Adam, corrected for lazy regularisation."""

import torch
from torch import Tensor, nn

from imago.trainer.config.load import OptimConfig
from imago.trainer.config.schedule import at


class Adam(torch.optim.Adam):
    """All of a network's. `set_rates` gives it its rates before each step."""

    def __init__(self, network: nn.Module, config: OptimConfig) -> None:
        super().__init__(groups_of(network, config), foreach=True)
        start(self)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Its state by the name of the parameter; the tensors share memory with it.

        `step` is a scalar [], `exp_avg` and `exp_avg_sq` have the shape of the parameter.
        """
        return {name: self.state[parameter] for group in self.param_groups
                for name, parameter in zip(group['param_names'], group['params'], strict=True)}

    def take_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """After those of `moments()` were loaded in place: there is nothing more to do."""


def groups_of(network: nn.Module, config: OptimConfig) -> list[dict]:
    """Adam's groups: parameters with the same share of the learning rate, which is 1 but for those in a module's `lr_shares`.

    They move as if they were stored 1 / share times larger, with the share a factor at use: eps must then grow too.
    """
    groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in network.named_parameters():
        module, _, own = name.rpartition('.')
        share = getattr(network.get_submodule(module), 'lr_shares', {}).get(own, 1.0)
        groups.setdefault(share, []).append((name, parameter))
    return [{'params': named, 'share': share, 'eps': config.eps / share} for share, named in groups.items()]


def start(adam: torch.optim.Adam) -> None:
    """Give it its state before the first step, so that a checkpoint always has a place for every tensor."""
    for group in adam.param_groups:
        for parameter in group['params']:
            adam.state[parameter] = {'step': torch.zeros((), dtype=torch.float32),
                                     'exp_avg': torch.zeros_like(parameter), 'exp_avg_sq': torch.zeros_like(parameter)}


def set_rates(adam: torch.optim.Adam, lr: float, config: OptimConfig, nimg: int, lazy: float | None) -> None:
    """For a network whose regularisation is an extra step after every `lazy` main steps (None: it is none).

    The extra steps are compensated by c = k / (k + 1): lr * c, beta ** c. Karras et al. 2020, appendix B.
    """
    c = 1.0 if lazy is None else lazy / (lazy + 1)
    beta1, beta2 = config.betas
    if config.beta2_ramp is not None:
        beta2 = at(config.beta2_ramp, nimg)
    for group in adam.param_groups:
        group['lr'], group['betas'] = lr * c * group['share'], (beta1 ** c, beta2 ** c)


def restart(adam: torch.optim.Adam) -> None:
    """Forget all moments, as at the start of a new resolution. Karras et al. 2018, appendix A.1."""
    for state in adam.state.values():
        for tensor in state.values():
            tensor.zero_()
