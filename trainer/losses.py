"""Adversarial losses: pairs of pure functions on logits [N, 1]; each returns a scalar, the mean over the batch."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Loss:
    d_loss: Callable[[Tensor, Tensor], Tensor]    # (real logits, fake logits)
    g_loss: Callable[[Tensor], Tensor]            # (fake logits)


# Non-saturating: L_D = -log s(D(x)) - log(1 - s(D(G(z)))), L_G = -log s(D(G(z))). Goodfellow et al. 2014, section 3.
def nonsaturating_d(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-real).mean() + softplus(fake).mean()


def nonsaturating_g(fake: Tensor) -> Tensor:
    return softplus(-fake).mean()


LOSSES = {
    'nonsaturating': Loss(nonsaturating_d, nonsaturating_g),
}
