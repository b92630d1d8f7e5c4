"""The contract of a game: what its networks show each other, as phases; and of a maker, what a trained run is for.

The loop, the strategies, the guard and every tool know games by this page alone. A game never steps an optimizer and never
asks for ranks. Its options, its rules and its plan stand in trainer/config/games.py.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from trainer.config.load import Config
from trainer.config.plan import Plan
from trainer.data.stream import Batch
from trainer.engine.phase import Phase
from trainer.engine.state import TrainState


@dataclass(frozen=True)
class Game(ABC):
    """Its mutable part is `state`."""

    config: Config
    plan: Plan
    state: TrainState

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images in this step's global batch."""

    @abstractmethod
    def begin_step(self) -> None:
        """Set what is a function of the images shown: learning rates, level of detail."""

    @abstractmethod
    def phases(self) -> list[Phase]:
        """What happens in a step, in order; their names are among the plan's."""

    @abstractmethod
    def micro_batches(self, batch: Batch, phase: Phase) -> list[Any]:
        """This rank's share of the step, cut for `phase`. Random numbers are drawn for the whole global batch, then cut."""

    def judge(self, pictures: np.ndarray, labels: Tensor) -> Tensor | None:
        """Logits [N] that the game's critic gives to pictures [NHWC] uint8 of classes [N]; None where it has no such critic.

        Nothing is augmented, and nothing is learned.
        """
        return None


class Maker(Protocol):
    """Makes pictures from the averages of a trained run; grids, guard, evaluation, sample and export know only this.

    `Inputs` of a maker are rows that can be sliced, concatenated by nobody, and moved by `to(device)`.
    """

    takes: tuple[str, ...]              # () latents alone; ('a',) pictures of that domain
    resolution: tuple[int, int]         # (height, width) in px
    class_counts: tuple[int, ...]       # how often each label is drawn; () where there are none

    def draw(self, seed: int, nimg: int, purpose: str, count: int) -> Any:
        """Inputs of `count` pictures, a pure function of the arguments; labels as frequent as in the data."""

    def inputs(self, seeds: list[int], label: int | None = None) -> Any:
        """Inputs of one picture a seed, the same for a seed whatever stands beside it."""

    def __call__(self, inputs: Any, psi: float = 1.0) -> Tensor:
        """Pictures [NCHW] in [-1, 1] at full size, on the device of the networks."""
