"""One object holds everything that changes the next step.

A pure function of the images shown (noise, data order, EMA ramp) is computed, not kept.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.engine.parallel import Optimizer, Strategy
from imago.trainer.engine.randomness import seed_for
from imago.trainer.models import build_network

ON_HOST = 'side', 'rollbacks'     # memory that decides what the host does, which must not wait for a device to tell it


@dataclass
class TrainState:
    """Networks, their averages and their optimizers go by the names that the game's plan gives the networks."""

    networks: dict[str, nn.Module]
    averages: dict[str, nn.Module] = field(default_factory=dict)     # EMA
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)          # values that the game remembers between steps
    guard: dict[str, Tensor] = field(default_factory=dict)           # values that the guard remembers, on the CPU
    nimg: int = 0         # images shown
    step: int = 0         # steps of the game's first phase

    def advance(self, batch: int) -> None:
        self.nimg += batch
        self.step += 1

    def tree(self) -> dict:
        """Return the state as nested dicts of tensors; after loading into them, `take` them. All ranks call it together.

        A network `G` has its average under `G_ema` and its optimizer's moments under `opt_G`, as checkpoints have them.
        """
        return {
            **{name: network.state_dict() for name, network in self.networks.items()},
            **{f'{name}_ema': average.state_dict() for name, average in self.averages.items()},
            **{f'opt_{name}': optimizer.moments() for name, optimizer in self.optimizers.items()},
            'scalars': self.memory, 'guard': self.guard, 'nimg': torch.tensor(self.nimg), 'step': torch.tensor(self.step),
        }

    def take(self, tree: dict) -> None:
        """Take over from `tree()` what does not share memory with the state."""
        for name, optimizer in self.optimizers.items():
            optimizer.take_moments(tree[f'opt_{name}'])
        self.nimg, self.step = int(tree['nimg']), int(tree['step'])


def make_state(config: Config, plan: Plan, device: torch.device, strategy: Strategy) -> TrainState:
    """Make a new run's state and spread it over the ranks by `strategy`. The guard itself adds what it remembers."""
    torch.manual_seed(seed_for(config.seed, 0, 'weights'))
    networks = {name: network.to(device).requires_grad_(False) for name, network in make_networks(plan).items()}
    averages = {name: copy.deepcopy(networks[name]).eval() for name in plan.averaged}
    # `rollbacks` counts those of the guard; each has lowered the learning rates.
    memory = {name: torch.zeros((), device='cpu' if name in ON_HOST else device) for name in (*plan.memory, 'rollbacks')}
    for network in networks.values():
        strategy.spread(network)
    for average in averages.values():
        strategy.spread(average, trained=False)
    optimizers = {name: strategy.optimizer(network, config.optim) for name, network in networks.items()}
    return TrainState(networks, averages, optimizers, memory)


def make_networks(plan: Plan) -> dict[str, nn.Module]:
    """Make new networks; their weights are drawn in the plan's order from torch's own generator."""
    return {name: build_network(spec.role, spec.model, spec.options) for name, spec in plan.networks.items()}
