"""The contract of a game: what its networks show each other, as phases, and who makes pictures of what they have learned.

The loop, the strategies, the guard and every tool know games by this page alone. A game never steps an optimizer and never
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
    """Its mutable part is `state`."""

    section: ClassVar[type[GameSection]]
    made_of: ClassVar[dict[str, str]] = {'G': 'generator'}    # networks that its maker takes, and their roles
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

    @staticmethod
    @abstractmethod
    def maker(networks: dict[str, nn.Module], class_counts: tuple[int, ...], conditions: str = '') -> Maker:
        """What makes pictures, from the averages in `made_of` alone: of a run that trains, which it sees change, or of an export."""
