"""Games by name: each is a file here, a line in GAMES, and its options, rules and plan in trainer/config/games.py."""

from trainer.config.load import Config
from trainer.config.plan import Plan
from trainer.engine.state import TrainState
from trainer.games.began import BEGAN
from trainer.games.game import Game
from trainer.games.latent import Latent
from trainer.games.mad import MADGAN
from trainer.games.sd import SDGAN

GAMES: dict[str, type[Game]] = {'latent': Latent, 'began': BEGAN, 'mad_gan': MADGAN, 'sd_gan': SDGAN}


def make_game(config: Config, plan: Plan, state: TrainState) -> Game:
    """The game that `config` names, on a state that `plan` has made."""
    return GAMES[config.game.name](config, plan, state)
