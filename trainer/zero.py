"""Adam behind a DeepSpeed engine: ZeRO of stage 1, Rajbhandari et al. 2020, arXiv 1910.02054. Every rank steps its part.

The engine gets gradients that are averaged already: its own average could not name the rank of one that is not finite.
"""

import logging
import os
import warnings
from types import ModuleType

import torch
import torch.distributed
from torch import Tensor, nn

from trainer import dist
from trainer.config import OptimConfig
from trainer.optim import start

MOMENTS = 'exp_avg', 'exp_avg_sq'
CONFIG = {
    'train_micro_batch_size_per_gpu': 1,
    'gradient_clipping': 0.0,    # it clips at 1 unless told
    'zero_optimization': {'stage': 1, 'contiguous_gradients': False, 'compute_grad_norm': False},
}


class ZeroAdam:
    """Of a network that is whole on each rank. Parameters are laid end to end, filled up with 0 and cut into equal parts."""

    def __init__(self, network: nn.Module, config: OptimConfig) -> None:
        network.requires_grad_(True)    # it leaves out what is frozen
        adam = torch.optim.Adam(network.parameters(), eps=config.eps, foreach=True)
        self._engine = _deepspeed().initialize(model=network, optimizer=adam, config=CONFIG)[0]
        network.requires_grad_(False)
        start(adam)
        self.param_groups, self.state = adam.param_groups, adam.state
        (own,), = (group['params'] for group in adam.param_groups)
        self._own = self.state[own]
        self._shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        self.gradient = torch.zeros(0)

    def take_gradient(self, average: Tensor) -> None:
        """Keep this rank's part of all parameters' gradients, laid end to end."""
        self.gradient = self._part(average)

    def step(self) -> None:
        zero = self._engine.optimizer
        zero.refresh_fp32_params()      # it steps a copy; parameters may have been loaded or clipped
        zero.averaged_gradients[0] = [self.gradient]
        self._engine.step()
        self.gradient = self.gradient.new_zeros(0)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Whole copies, by the name of the parameter. All ranks call it together."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        whole = {key: self.whole(self._own[key])[:sum(sizes)].split(sizes) for key in MOMENTS}
        return {name: {'step': self._own['step'].clone()} | {key: whole[key][index].view(shape) for key in MOMENTS}
                for index, (name, shape) in enumerate(self._shapes.items())}

    def take_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """This rank's part of those in `moments`. The network's parameters have all taken as many steps."""
        for key in MOMENTS:
            self._own[key].copy_(self._part(torch.cat([moments[name][key].flatten() for name in self._shapes])))
        self._own['step'].copy_(next(iter(moments.values()))['step'])

    def whole(self, part: Tensor) -> Tensor:
        """The parts of all ranks end to end."""
        whole = part.new_empty(dist.world_size(), len(part))
        torch.distributed.all_gather(list(whole), part)
        return whole.flatten()

    def _part(self, whole: Tensor) -> Tensor:
        """A copy of this rank's part."""
        length = len(self._own[MOMENTS[0]])
        own = whole[dist.rank() * length:][:length]
        return nn.functional.pad(own, (0, length - len(own)))


def _deepspeed() -> ModuleType:
    """The library, quiet, for this run's device, and without what it would compile as it starts (a minute, or for ever)."""
    os.environ['DS_ACCELERATOR'] = dist.device().type
    import deepspeed
    logging.getLogger('DeepSpeed').setLevel(logging.WARNING)
    # said of each of its steps
    warnings.filterwarnings('ignore', message='`torch.distributed.all_gather_into_tensor` is deprecated')
    deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False
    return deepspeed
