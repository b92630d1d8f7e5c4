"""A plan says without torch what a configuration trains."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NetworkSpec:
    """This describes a network that a game trains. `options` are its constructor's arguments, as plain JSON values."""

    model: str                  # a name in trainer.models.NETWORKS
    role: str                   # its role there
    options: dict
    player: Literal['g', 'd']   # whose learning rate it has


@dataclass(frozen=True)
class Plan:
    """A plan is what a game trains under a configuration, on a dataset."""

    networks: dict[str, NetworkSpec]            # in the order in which their weights are drawn
    averaged: tuple[str, ...]                   # networks that have an EMA
    memory: tuple[str, ...]                     # scalars that the game remembers between steps, 0 at first
    phases: tuple[str, ...]                     # those that may come in a step, in order
    resolution: tuple[int, int]                 # (height, width) in px
    channels: int                               # of the pictures
    class_names: tuple[str, ...] = ()           # of the classes that are trained on
    class_counts: tuple[int, ...] = ()
    condition_shape: tuple[int, ...] = ()       # of the conditions that are trained on; () where there are none
    conditions: str = ''                        # some of the dataset's, as text, to make fakes by; see data/conditions.py
    domains: tuple[str, ...] = ('image',)       # of Batch.pictures
