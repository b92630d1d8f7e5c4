"""Adam is corrected here for lazy regularisation."""

import torch
from torch import Tensor, nn

from imago.trainer.config.load import OptimConfig
from imago.trainer.config.schedule import at


class Adam(torch.optim.Adam):
    """Steps all parameters of a network. `set_rates` gives it its rates before each step."""

    def __init__(self, network: nn.Module, config: OptimConfig) -> None:
        self.fused = all(type(parameter.data) is Tensor and parameter.device.type == 'cuda' for parameter in network.parameters())
        super().__init__(groups_of(network, config), foreach=not self.fused, fused=self.fused)
        start(self, self.fused)

    def skip_unless(self, finite: Tensor) -> None:
        """Let the next step change nothing if `finite` [], a bool on the device, is false. Only fused steps can."""
        if self.fused:
            self.found_inf = (~finite).float()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return its state by the name of the parameter; the tensors share memory with it.

        `step` is a scalar [], `exp_avg` and `exp_avg_sq` have the shape of the parameter.
        """
        return {name: self.state[parameter] for group in self.param_groups
                for name, parameter in zip(group['param_names'], group['params'], strict=True)}

    def take_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Do nothing: loading into the tensors [...] of `moments()` has already changed the state."""


def groups_of(network: nn.Module, config: OptimConfig) -> list[dict]:
    """Group parameters by their share of the learning rate, which is 1 unless their module has another in `lr_shares`.

    They move as if they were stored 1 / share times larger and multiplied by the share at use, so eps must grow too.
    """
    groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in network.named_parameters():
        module, _, own = name.rpartition('.')
        share = getattr(network.get_submodule(module), 'lr_shares', {}).get(own, 1.0)
        groups.setdefault(share, []).append((name, parameter))
    return [{'params': named, 'share': share, 'eps': config.eps / share} for share, named in groups.items()]


def start(adam: torch.optim.Adam, fused: bool = False) -> None:
    """Give Adam its state before the first step, so that a checkpoint always has a place for every tensor.

    Fused steps are counted on the device: else the host would read as many counts as there are parameters.
    """
    for group in adam.param_groups:
        for parameter in group['params']:
            adam.state[parameter] = {'step': torch.zeros((), dtype=torch.float32, device=parameter.device if fused else 'cpu'),
                                     'exp_avg': torch.zeros_like(parameter), 'exp_avg_sq': torch.zeros_like(parameter)}


def set_rates(adam: torch.optim.Adam, lr: float, config: OptimConfig, nimg: int, lazy: float | None) -> None:
    """Set learning rates and betas. After every `lazy` main steps, regularisation takes an extra step (None: never).

    With k = `lazy`, c = k / (k + 1) compensates for it: lr * c, beta ** c. Karras et al. 2020, appendix B.
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
