"""This is the contract of a game: its phases say what its networks show each other, and its maker makes pictures from them.

The loop, the strategies, the guard and every tool know games by this file alone. A game never steps an optimizer and never
asks for ranks. Its options, its rules and its plan stand in trainer/config/games.py.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from imago.trainer.config.games import GameSection
from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.data.stream import Batch
from imago.trainer.engine.phase import Phase
from imago.trainer.engine.state import TrainState
from imago.trainer.games.makers import Maker


@dataclass(frozen=True)
class Game(ABC):
    """Only `state` is mutable in a game."""

    section: ClassVar[type[GameSection]]
    made_of: ClassVar[dict[str, str]] = {'G': 'generator'}    # networks that its maker takes, and their roles
    # whether losses read what changes from tensors or `Scalars` alone, see engine/graphs.py; each class says so for itself
    captured: ClassVar[bool] = False
    config: Config
    plan: Plan
    state: TrainState

    @property
    @abstractmethod
    def batch(self) -> int:
        """Return the number of images in this step's global batch."""

    @abstractmethod
    def begin_step(self) -> None:
        """Set what is a function of the images shown, such as learning rates and the level of detail."""

    @abstractmethod
    def phases(self) -> list[Phase]:
        """Return the phases of a step, in order; the plan has their names."""

    @abstractmethod
    def micro_batches(self, batch: Batch, phase: Phase) -> list[Any]:
        """Cut this rank's share of the step for `phase`. Random numbers are drawn for the whole global batch, then cut."""

    def judge(self, pictures: np.ndarray, labels: Tensor) -> Tensor | None:
        """Return the logits [N] of the game's critic for pictures [NHWC] uint8 of classes [N]; None if it has no such critic.

        Nothing is augmented, and nothing is learned.
        """
        return None

    @staticmethod
    @abstractmethod
    def maker(networks: dict[str, nn.Module], class_counts: tuple[int, ...], conditions: str = '') -> Maker:
        """Make the maker of pictures, from the averages in `made_of` alone: those of an export, or of a run, whose changes it
        sees."""
