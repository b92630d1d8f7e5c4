"""A DeepSpeed engine runs Adam here: in stage 1 of ZeRO, every rank steps its part. Rajbhandari et al. 2020, arXiv 1910.02054.

The engine gets gradients that are averaged already: if it averaged them, nobody could tell which rank had one that is not
finite.
"""

import logging
import os
import warnings
from types import ModuleType

import torch
import torch.distributed
from torch import Tensor, nn

from imago.trainer.config.load import OptimConfig
from imago.trainer.engine.optim import groups_of, start
from imago.trainer.ranks import dist

MOMENTS = 'exp_avg', 'exp_avg_sq'
CONFIG = {
    'train_micro_batch_size_per_gpu': 1,
    'gradient_clipping': 0.0,    # the default of DeepSpeed is to clip at 1
    'zero_optimization': {'stage': 1, 'contiguous_gradients': False, 'compute_grad_norm': False},
}


class Part:
    """Holds this rank's part of a group of parameters, which is laid end to end, filled up with 0 and cut into equal parts."""

    def __init__(self, shapes: dict[str, torch.Size], state: dict[str, Tensor]) -> None:
        """state: Adam's state of this part."""
        self.state, self.gradient = state, torch.zeros(0)
        self._shapes = shapes
        self.length = sum(shape.numel() for shape in shapes.values())    # all parts together have this length without the filling

    def of(self, whole: Tensor) -> Tensor:
        """Copy this rank's part of a whole tensor: [length] -> [P], as long as the part's moments."""
        length = len(self.state[MOMENTS[0]])
        own = whole[dist.rank() * length:][:length]
        return nn.functional.pad(own, (0, length - len(own)))

    def whole(self, part: Tensor) -> dict[str, Tensor]:
        """Gather the parts [P] of all ranks, by the name of the parameter and in its shape [...]. All ranks call it together."""
        whole = part.new_empty(dist.world_size(), len(part))
        torch.distributed.all_gather(list(whole), part)
        pieces = whole.flatten()[:self.length].split([shape.numel() for shape in self._shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return whole copies by the name of the parameter: `step` [], the others in its shape. All ranks call it together."""
        whole = {key: self.whole(self.state[key]) for key in MOMENTS}
        return {name: {'step': self.state['step'].clone()} | {key: whole[key][name] for key in MOMENTS} for name in self._shapes}

    def take_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Keep this rank's part [P] of `moments`, which are whole. All parameters of the group have taken equally many steps."""
        own = [moments[name] for name in self._shapes]
        for key in MOMENTS:
            self.state[key].copy_(self.of(torch.cat([state[key].flatten() for state in own])))
        self.state['step'].copy_(own[0]['step'])


class ZeroAdam:
    """Steps a network that is whole on each rank. `parts` are this rank's, one for each group that learns at its own rate."""

    def __init__(self, network: nn.Module, config: OptimConfig) -> None:
        network.requires_grad_(True)    # the engine would leave out frozen parameters
        groups = groups_of(network, config)
        self.parameters = [parameter for group in groups for _, parameter in group['params']]
        shapes = [{name: parameter.shape for name, parameter in group['params']} for group in groups]
        adam = torch.optim.Adam(groups, foreach=True)
        self._engine = _deepspeed().initialize(model=network, optimizer=adam, config=CONFIG)[0]
        network.requires_grad_(False)
        start(adam)
        self.param_groups, self.state = adam.param_groups, adam.state
        self.parts = [Part(own, self.state[group['params'][0]]) for own, group in zip(shapes, adam.param_groups, strict=True)]

    def take_gradient(self, average: Tensor) -> None:
        """Keep this rank's parts of the gradients of `parameters`, laid end to end: [sum of the parts' `length`]."""
        for part, gradient in zip(self.parts, average.split([part.length for part in self.parts]), strict=True):
            part.gradient = part.of(gradient)

    def step(self) -> None:
        zero = self._engine.optimizer
        zero.refresh_fp32_params()      # the engine steps a copy, but parameters may have been loaded or clipped since
        for index, part in enumerate(self.parts):
            zero.averaged_gradients[index] = [part.gradient]
        self._engine.step()
        for part in self.parts:
            part.gradient = part.gradient.new_zeros(0)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return whole copies by the name of the parameter: `step` [], the others in its shape. All ranks call it together."""
        return {name: moments for part in self.parts for name, moments in part.moments().items()}

    def take_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Keep this rank's parts [P] of `moments`, which are whole."""
        for part in self.parts:
            part.take_moments(moments)


def _deepspeed() -> ModuleType:
    """Import the library for this run's device. Keep it quiet, and keep it from compiling a part of itself, which can take a
    minute or hang."""
    os.environ['DS_ACCELERATOR'] = dist.device().type
    import deepspeed
    logging.getLogger('DeepSpeed').setLevel(logging.WARNING)
    # The library gives this warning at each step.
    warnings.filterwarnings('ignore', message='`torch.distributed.all_gather_into_tensor` is deprecated')
    deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False
    return deepspeed
