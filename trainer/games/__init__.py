"""This package knows games by name. Each is a file here, a line below, and its options, rules and plan in
trainer/config/games.py."""

from imago.trainer.config.games import add_section
from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.config.schema import name_of
from imago.trainer.engine.state import TrainState
from imago.trainer.games.began import BEGAN
from imago.trainer.games.game import Game
from imago.trainer.games.latent import Latent
from imago.trainer.games.mad import MADGAN
from imago.trainer.games.makers import Maker
from imago.trainer.games.sd import SDGAN

GAMES: dict[str, type[Game]] = {}


def add_game(game: type[Game]) -> None:
    """Let configurations name a game and runs play it. Raises ValueError if another game has the name of its section."""
    add_section(game.section)
    GAMES[name_of(game.section)] = game


for _game in (Latent, BEGAN, MADGAN, SDGAN):
    add_game(_game)


def make_game(config: Config, plan: Plan, state: TrainState) -> Game:
    """Make the game that `config` names, on a state that was made for `plan`."""
    return GAMES[config.game.name](config, plan, state)


def maker_of(config: Config, plan: Plan, state: TrainState) -> Maker:
    """Make the maker of a run's averages, whose changes it sees."""
    game = GAMES[config.game.name]
    return game.maker({name: state.averages[name] for name in game.made_of}, plan.class_counts, plan.conditions)
