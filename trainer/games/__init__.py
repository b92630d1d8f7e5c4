"""This package knows games by name. Each is a file here, a line below, and its options, rules and plan in
trainer/config/games.py."""

import torch
from torch import nn

from imago.trainer.config.games import add_section
from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.config.schema import name_of
from imago.trainer.engine.graphs import Graphs
from imago.trainer.engine.state import TrainState
from imago.trainer.games.began import BEGAN
from imago.trainer.games.game import Game
from imago.trainer.games.latent import Latent
from imago.trainer.games.mad import MADGAN
from imago.trainer.games.makers import Maker
from imago.trainer.games.sd import SDGAN
from imago.trainer.models.batch_norm import has_batch_norm
from imago.trainer.objectives.losses import LOSSES
from imago.trainer.ranks import dist

GAMES: dict[str, type[Game]] = {}


def add_game(game: type[Game]) -> None:
    """Let configurations name a game and runs play it. Raises ValueError if another game has the name of its section."""
    add_section(game.section)
    GAMES[name_of(game.section)] = game


for _game in (Latent, BEGAN, MADGAN, SDGAN):
    add_game(_game)


def make_graphs(config: Config, state: TrainState, device: torch.device) -> Graphs | None:
    """Make the graphs of a run's phases; None if it has none. ValueError if graphs=on asks for what cannot be had."""
    if config.graphs == 'off':
        return None
    reason = 'there is no CUDA device' if device.type != 'cuda' else why_no_graphs(config, state.networks, dist.world_size())
    if config.graphs == 'on' and reason:
        raise ValueError(f'graphs=on: {reason}; use graphs=auto')
    if reason or (config.graphs == 'auto' and has_foreign_parts(config, state.networks)):
        return None
    return Graphs(required=config.graphs == 'on')


def why_no_graphs(config: Config, networks: dict[str, nn.Module], world: int) -> str | None:
    """Return why phases on `world` GPUs cannot be captured; None if they can."""
    refusals = {
        # a subclass may read more than its base, so that it must say so itself
        f'game.name={config.game.name} does not say that it reads no numbers that a graph would keep':
            not vars(GAMES[config.game.name]).get('captured', False),
        'compile=true captures phases in its own way': config.compile,
        'with growth, networks change': config.growth is not None,
        'loss.reuse_fakes=true joins two phases': config.loss.reuse_fakes,
        f'parallel.strategy={config.parallel.strategy} makes new gradients in each phase':
            world > 1 and config.parallel.strategy != 'data',
        'batch norm sums over ranks within a phase': world > 1 and any(map(has_batch_norm, networks.values())),
    }
    return next((reason for reason, forbids in refusals.items() if forbids), None)


def has_foreign_parts(config: Config, networks: dict[str, nn.Module]) -> bool:
    """Return whether networks or the loss come from outside of this package: nobody knows which numbers they read."""
    parts = (*map(type, networks.values()), LOSSES[config.loss.name].d_loss)
    return bool(config.plugins) or not all(part.__module__.startswith('imago.') for part in parts)


def make_game(config: Config, plan: Plan, state: TrainState) -> Game:
    """Make the game that `config` names, on a state that was made for `plan`."""
    return GAMES[config.game.name](config, plan, state)


def maker_of(config: Config, plan: Plan, state: TrainState) -> Maker:
    """Make the maker of a run's averages, whose changes it sees."""
    game = GAMES[config.game.name]
    return game.maker({name: state.averages[name] for name in game.made_of}, plan.class_counts, plan.conditions)
