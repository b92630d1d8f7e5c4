"""Everything that changes the next step, in one object.

What is a pure function of the images shown (noise, data order, EMA ramp) is computed, not kept.
"""

import copy
import inspect
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.config.load import Config
from trainer.data.manifest import Manifest
from trainer.engine.parallel import Optimizer, Strategy
from trainer.engine.randomness import seed_for
from trainer.models import MODELS, build_generator
from trainer.models.spectral import normalise_weights
from trainer.watch.alarms import new_alarms
from trainer.watch.spikes import new_memory

# Running values of losses, penalties and augmentation, 0 at the start.
SCALARS = (
    'path_length_mean',
    'side',                                       # px that the optimizers have been working at, where networks grow;
                                                  # of growth.restart=both, negative in a fade
    'began_k',
    'lecam_real', 'lecam_fake',                   # moving averages of the logits, from 0: biased by the steps so far
    'augment_p', 'augment_signs', 'augment_steps',   # and the sum of D(real)'s signs since p was last adjusted
    'rollbacks',                                  # of the guard, each of which has lowered the learning rates
)


@dataclass
class TrainState:
    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    opt_G: Optimizer
    opt_D: Optimizer
    scalars: dict[str, Tensor] = field(default_factory=dict)    # see SCALARS
    guard: dict[str, Tensor] = field(default_factory=dict)      # what it has seen; on the CPU
    nimg: int = 0         # images shown
    step: int = 0         # of D's main phase

    def advance(self, batch: int) -> None:
        self.nimg += batch
        self.step += 1

    def tree(self) -> dict:
        """The state as nested dicts of tensors; after loading into them, `take` it. All ranks call it together."""
        return {
            'G': self.G.state_dict(), 'D': self.D.state_dict(), 'G_ema': self.G_ema.state_dict(),
            'opt_G': self.opt_G.moments(), 'opt_D': self.opt_D.moments(),
            'scalars': self.scalars, 'guard': self.guard, 'nimg': torch.tensor(self.nimg), 'step': torch.tensor(self.step),
        }

    def take(self, tree: dict) -> None:
        """What of `tree()` does not share memory with the state."""
        self.opt_G.take_moments(tree['opt_G'])
        self.opt_D.take_moments(tree['opt_D'])
        self.nimg, self.step = int(tree['nimg']), int(tree['step'])


def make_state(config: Config, manifest: Manifest, device: torch.device, strategy: Strategy) -> TrainState:
    """A new run's state, spread over the ranks by `strategy`."""
    torch.manual_seed(seed_for(config.seed, 0, 'weights'))
    G, D = (network.to(device).requires_grad_(False) for network in make_networks(config, manifest))
    G_ema = copy.deepcopy(G).eval()
    guard = new_memory(G, D) | new_alarms()
    for network in (G, D):
        strategy.spread(network)
    strategy.spread(G_ema, trained=False)
    return TrainState(
        G=G, D=D, G_ema=G_ema,
        opt_G=strategy.optimizer(G, config.optim), opt_D=strategy.optimizer(D, config.optim),
        scalars={name: torch.zeros((), device=device) for name in SCALARS}, guard=guard)


def make_networks(config: Config, manifest: Manifest) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator for the pictures of `manifest`, as configured."""
    for_G, for_D = network_options(config, manifest)
    G = build_generator(config.network.name, for_G)
    D = MODELS[config.network.name][1](**for_D)
    penalties = config.regularizers
    if penalties.normalise != 'none':
        normalise_weights(D, penalties.normalise, penalties.stable_rank)
    return G, D


def picture_size(config: Config, manifest: Manifest) -> tuple[int, int]:
    """(height, width) that the networks work at."""
    return config.data.resolution or manifest.resolution


def network_options(config: Config, manifest: Manifest) -> tuple[dict, dict]:
    """Arguments of the generator and of the discriminator; plain JSON values."""
    network, classes = config.network, len(manifest.class_names) if config.data.conditional else 0
    options = network.model_dump(mode='json') | {'resolution': picture_size(config, manifest)}
    for_G = options | {'img_channels': manifest.channels, 'c_dim': classes}
    outputs = 1 + (classes if config.loss.auxiliary else network.generators if network.generators > 1 else 0)
    for_D = options | {'img_channels': manifest.channels * (2 if config.data.pairs else 1),   # a pair is one input
                       'c_dim': 0 if config.loss.auxiliary else classes, 'num_outputs': outputs}
    Generator, Discriminator = MODELS[network.name]
    more = {'generators': network.generators} if network.generators > 1 else {}
    if config.regularizers.normalise_g:
        more['normalise'] = (config.regularizers.normalise, config.regularizers.stable_rank)
    return _accepted(Generator, for_G) | more, _accepted(Discriminator, for_D)


def _accepted(network: type[nn.Module], options: dict) -> dict:
    """Those options that the constructor has an argument for."""
    return {name: options[name] for name in inspect.signature(network).parameters if name in options}
