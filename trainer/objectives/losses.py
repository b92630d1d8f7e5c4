"""Adversarial losses are pure functions on logits [N, 1]. Each returns a scalar [], the mean over the batch.

In the equations, D is the logit, s the sigmoid, x a real and G(z) a fake. G's losses take the reals' logits last; all but
the relativistic one ignore them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import softplus

from imago.trainer.config.losses import LOSS_FACTS, LossFacts


@dataclass(frozen=True)
class Loss:
    d_loss: Callable[..., Tensor]                               # (real logits, fake logits)
    g_loss: Callable[[Tensor, Tensor | None], Tensor]           # (fake logits, real logits)


# Minimax: L_D = -log s(D(x)) - log(1 - s(D(G(z)))), L_G = log(1 - s(D(G(z)))). Goodfellow et al. 2014, equation 1.
def minimax_d(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return -softplus(fake).mean()


# Non-saturating: L_D as minimax, L_G = -log s(D(G(z))). Goodfellow et al. 2014, section 3.
def nonsaturating_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return softplus(-fake).mean()


# Wasserstein: L_D = D(G(z)) - D(x), L_G = -D(G(z)), for D Lipschitz. Arjovsky et al. 2017, equations 2 and 3.
def wgan_d(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def wgan_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return -fake.mean()


# Least squares: L_D = (D(x) - 1)^2 / 2 + D(G(z))^2 / 2, L_G = (D(G(z)) - 1)^2 / 2. Mao et al. 2017, equation 9.
def least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    return (real - 1).square().mean() / 2 + fake.square().mean() / 2


def least_squares_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return (fake - 1).square().mean() / 2


# Hinge: L_D = max(0, 1 - D(x)) + max(0, 1 + D(G(z))), L_G = -D(G(z)). Miyato et al. 2018, equations 16 and 17.
def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


# Relativistic pairing: L_D = -log s(D(x) - D(G(z))), L_G = -log s(D(G(z)) - D(x)). Jolicoeur-Martineau 2018;
# Huang et al. 2024 (R3GAN), equation 2.
def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(fake - real).mean()


def relativistic_g(fake: Tensor, real: Tensor) -> Tensor:
    return softplus(real - fake).mean()


# BEGAN, on energies E >= 0: L_D = E(x) - k E(G(z)), L_G = E(G(z)). Berthelot et al. 2017, section 3.4.
def began_d(real: Tensor, fake: Tensor, k: Tensor | float) -> Tensor:
    return real.mean() - k * fake.mean()


def began_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return fake.mean()


def began_balance(k: Tensor, real_mean: Tensor, fake_mean: Tensor, gamma: float, rate: float) -> Tensor:
    """Return k + rate (gamma E(x) - E(G(z))) within [0, 1], from the step's mean energies; all are scalars [].

    Berthelot et al. 2017, section 3.4.
    """
    return (k + rate * (gamma * real_mean - fake_mean)).clamp(0, 1)


LOSSES = {
    'minimax': Loss(minimax_d, minimax_g),
    'nonsaturating': Loss(minimax_d, nonsaturating_g),
    'wgan': Loss(wgan_d, wgan_g),
    'least_squares': Loss(least_squares_d, least_squares_g),
    'hinge': Loss(hinge_d, wgan_g),
    'relativistic': Loss(relativistic_d, relativistic_g),
}
assert LOSSES.keys() == LOSS_FACTS.keys()


def add_loss(name: str, loss: Loss, facts: LossFacts) -> None:
    """Let `loss.name` take `name`. Raises ValueError if another loss has this name."""
    if LOSSES.setdefault(name, loss) != loss or LOSS_FACTS.setdefault(name, facts) != facts:
        raise ValueError(f'there is a loss {name} already; choose another name')


# MAD-GAN: L_D = -log p_0(x) - sum_i log p_i(G_i(z)). Ghosh et al. 2018. p is the softmax of D's outputs [N, 1 + generators],
# where column 0 is for reals. Each generator weighs as much as the data.
def mad_gan_d(real: Tensor, fake: Tensor, generator: Tensor) -> Tensor:
    """real and fake [N, 1 + generators], generator [N] int64 -> the loss, a scalar [].

    `generator` says which one, from 0, made each fake; all make equally many.
    """
    reals = torch.zeros(len(real), dtype=torch.int64, device=real.device)
    return F.cross_entropy(real, reals) + (fake.shape[1] - 1) * F.cross_entropy(fake, generator + 1)


# MAD-GAN, non-saturating: L_G = -log p_0(G_i(z)), in place of log(1 - p_0). Goodfellow et al. 2014, section 3.
def mad_gan_g(fake: Tensor) -> Tensor:
    """D's outputs [N, 1 + generators] for fakes -> the loss, a scalar []."""
    return -fake.log_softmax(dim=1)[:, 0].mean()


# Auxiliary classifier: L_C = -log p(class), for D on reals and fakes and for G on fakes. Odena et al. 2017, equation 3.
def auxiliary_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """class_logits [N, C], one-hot float labels [N, C] -> the loss, a scalar []."""
    return F.cross_entropy(class_logits, labels)
