"""This module has facts about adversarial losses and D's gradient penalties that need no torch.

The equations are in trainer/objectives, under the same names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossFacts:
    signed: bool = False      # it draws D's logits for reals above 0 and for fakes below
    positive: bool = False    # for both D and G it is at least 0
    paired: bool = False      # it compares each fake with the real of its row, for D and for G


LOSS_FACTS = {
    'minimax': LossFacts(signed=True),
    'nonsaturating': LossFacts(signed=True, positive=True),
    'wgan': LossFacts(),
    'least_squares': LossFacts(positive=True),
    'hinge': LossFacts(signed=True),
    'relativistic': LossFacts(positive=True, paired=True),
}


def known_loss(name: str) -> str:
    """Return the name of a loss. ValueError, which names the losses, for any other."""
    if name not in LOSS_FACTS:
        raise ValueError(f'take one of {", ".join(LOSS_FACTS)}')
    return name


GRADIENT_PENALTY_NAMES = ('r1', 'r2', 'wgan_gp', 'dragan')    # keys of `regularizers`, in the order of their sum
