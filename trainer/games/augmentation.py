"""Augmentation while a game is played: with which probability D sees changed pictures, and how ADA adapts it to D."""

from torch import Tensor

from imago.trainer.config.plan import Plan
from imago.trainer.config.schedule import at
from imago.trainer.config.sections import AugmentConfig
from imago.trainer.engine.state import TrainState
from imago.trainer.objectives.augment import adapt_p, make_augment


class Augmentation:
    """Changes pictures as the section `augment` says. Its mutable part is in the state's memory."""

    def __init__(self, config: AugmentConfig, plan: Plan, state: TrainState) -> None:
        self.config, self.state = config, state
        self.transform = make_augment(config.name, config.groups, config.factors, config.policies, plan.channels, plan.resolution)

    def __call__(self, images: Tensor) -> Tensor:
        """images [NCHW] -> augmented images [NCHW]"""
        p = self.config.p
        return self.transform(images, self.state.memory['augment_p'] if p is None else at(p, self.state.nimg))

    @property
    def adapts(self) -> bool:
        """Whether the probability follows D, as in ADA without a fixed probability."""
        return self.config.name == 'ada' and self.config.p is None

    def adapt(self, sign: Tensor, batch: int) -> Tensor:
        """Return the probability [] after a step of `batch` images, in which the mean sign of D(real) was `sign` [].

        It moves every `interval` steps, by the mean of the signs since it last moved.
        """
        memory, interval = self.state.memory, self.config.interval
        memory['augment_signs'] += sign
        memory['augment_steps'] += 1
        if memory['augment_steps'] >= interval:
            memory['augment_p'].copy_(adapt_p(memory['augment_p'], memory['augment_signs'] / memory['augment_steps'],
                                              batch * interval, self.config.target, self.config.speed_kimg))
            memory['augment_signs'].zero_()
            memory['augment_steps'].zero_()
        return memory['augment_p'].clone()
