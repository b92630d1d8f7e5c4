"""Everything that changes the next step, in one object.

What is a pure function of the images shown (noise, data order, EMA ramp) is computed, not kept.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.data.manifest import Manifest
from trainer.models import MODELS
from trainer.optim import make_adam
from trainer.randomness import seed_for


@dataclass
class TrainState:
    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    opt_G: torch.optim.Optimizer
    opt_D: torch.optim.Optimizer
    pl_mean: Tensor       # scalar, running mean of the path lengths
    nimg: int = 0         # images shown
    step: int = 0         # optimizer steps of the main phases

    def advance(self, batch: int) -> None:
        self.nimg += batch
        self.step += 1

    def tree(self) -> dict:
        """The state as nested dicts of tensors that share memory with it; counters are copies."""
        return {
            'G': self.G.state_dict(), 'D': self.D.state_dict(), 'G_ema': self.G_ema.state_dict(),
            'opt_G': _by_name(self.opt_G, self.G), 'opt_D': _by_name(self.opt_D, self.D),
            'pl_mean': self.pl_mean, 'nimg': torch.tensor(self.nimg), 'step': torch.tensor(self.step),
        }

    def take_counters(self, tree: dict) -> None:
        """After tensors of `tree()` were loaded in place."""
        self.nimg, self.step = int(tree['nimg']), int(tree['step'])


def make_state(config: Config, manifest: Manifest, device: torch.device) -> TrainState:
    """A new run's state, the same on every rank."""
    torch.manual_seed(seed_for(config.seed, 0, 'weights'))
    G, D = (network.to(device).requires_grad_(False) for network in make_networks(config, manifest))
    return TrainState(
        G=G, D=D, G_ema=copy.deepcopy(G).eval(),
        opt_G=make_adam(G, config.optim.g_lr, config.optim, config.loss.pl_interval if config.loss.pl_weight else None),
        opt_D=make_adam(D, config.optim.d_lr, config.optim, config.loss.r1_interval if config.loss.r1_gamma else None),
        pl_mean=torch.zeros((), device=device))


def make_networks(config: Config, manifest: Manifest) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator for the pictures of `manifest`, as configured."""
    Generator, Discriminator = MODELS[config.network.name]
    for_G, for_D = network_options(config, manifest)
    return Generator(**for_G), Discriminator(**for_D)


def picture_size(config: Config, manifest: Manifest) -> tuple[int, int]:
    """(height, width) that the networks work at."""
    return config.data.resolution or manifest.resolution


def network_options(config: Config, manifest: Manifest) -> tuple[dict, dict]:
    """Arguments of the generator and of the discriminator; plain JSON values."""
    both = config.network.model_dump(exclude={'name', 'z_dim', 'w_dim', 'mapping_layers', 'mbstd_group'})
    both |= {'resolution': picture_size(config, manifest), 'img_channels': manifest.channels,
             'c_dim': len(manifest.class_names) if config.data.conditional else 0}
    return (both | config.network.model_dump(include={'z_dim', 'w_dim', 'mapping_layers'}),
            both | config.network.model_dump(include={'mbstd_group'}))


def _by_name(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {name: optimizer.state[parameter] for name, parameter in network.named_parameters()}
