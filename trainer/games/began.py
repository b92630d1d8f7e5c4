"""In BEGAN, D is an autoencoder, and the errors of reals and fakes are kept in balance. Berthelot et al. 2017."""

from torch import Tensor

from imago.trainer.config import games
from imago.trainer.engine.phase import Means
from imago.trainer.games.latent import Latent, MicroBatch
from imago.trainer.objectives.losses import began_balance, began_d, began_g


class BEGAN(Latent):
    """D's one output is a reconstruction error, which is called a logit below. `memory` has k, the weight of the fakes' error."""

    section = games.BEGAN
    captured = True

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """D's errors [N, 1] of reals and fakes -> the loss, a scalar []."""
        return began_d(real, fake, self.state.memory['began_k'])

    def g_loss(self, fake: Tensor, micro: MicroBatch) -> Tensor:
        """D's errors [N, 1] of the fakes -> the loss, a scalar []."""
        return began_g(fake)

    def after_d(self, means: Means) -> None:
        super().after_d(means)
        k, game = self.state.memory['began_k'], self.config.game
        k.copy_(began_balance(k, means['logits/real'], means['logits/fake'], game.gamma, game.rate))
        means['began/k'] = k.clone()
