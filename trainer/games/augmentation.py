"""Augmentation while a game is played: with which probability D sees changed pictures, and how ADA adapts it to D."""

import torch
from torch import Tensor

from imago.trainer.config.plan import Plan
from imago.trainer.config.sections import AugmentConfig
from imago.trainer.engine.graphs import Scalars
from imago.trainer.engine.state import TrainState
from imago.trainer.objectives.augment import adapt_p, make_augment


class Augmentation:
    """Changes pictures as the section `augment` says. Its mutable part is in the state's memory."""

    def __init__(self, config: AugmentConfig, plan: Plan, state: TrainState, scalars: Scalars) -> None:
        """scalars: have `augment_p`, the probability at the present step, unless it follows D."""
        self.config, self.state, self.scalars = config, state, scalars
        self.transform = make_augment(config.name, config.groups, config.factors, config.policies, plan.channels, plan.resolution)

    def __call__(self, images: Tensor) -> Tensor:
        """images [NCHW] -> augmented images [NCHW]"""
        return self.transform(images, (self.state.memory if self.config.p is None else self.scalars)['augment_p'])

    @property
    def adapts(self) -> bool:
        """Whether the probability follows D, as in ADA without a fixed probability."""
        return self.config.name == 'ada' and self.config.p is None

    def adapt(self, sign: Tensor, batch: int) -> Tensor:
        """Return the probability [] after a step of `batch` images, in which the mean sign of D(real) was `sign` [].

        It moves every `interval` steps, by the mean of the signs since it last moved.
        """
        interval = self.config.interval
        p, signs, steps = (self.state.memory[f'augment_{name}'] for name in ('p', 'signs', 'steps'))
        signs += sign
        steps += 1
        due = steps >= interval     # it stays on the device
        p.copy_(torch.where(due, adapt_p(p, signs / steps, batch * interval, self.config.target, self.config.speed_kimg), p))
        signs.masked_fill_(due, 0)
        steps.masked_fill_(due, 0)
        return p.clone()
