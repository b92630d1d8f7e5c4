"""MAD-GAN has several generators, and a discriminator that also tells which one made a fake. Ghosh et al. 2018."""

import torch
from torch import Tensor

from imago.trainer.config import games
from imago.trainer.games.latent import Latent, MicroBatch
from imago.trainer.games.makers import SeveralMaker
from imago.trainer.objectives.losses import mad_gan_d, mad_gan_g


class MADGAN(Latent):
    """G holds k generators, of which number i % k makes row i of a micro-batch. D has an output for reals, and one for each."""

    section = games.MADGAN
    captured = True
    maker = SeveralMaker

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """D's outputs [N, 1 + generators] for reals and fakes -> the loss, a scalar []."""
        return mad_gan_d(real, fake, torch.arange(len(fake), device=fake.device) % self.config.game.generators)

    def g_loss(self, fake: Tensor, micro: MicroBatch) -> Tensor:
        """D's outputs [N, 1 + generators] for the fakes -> the loss, a scalar []."""
        return mad_gan_g(fake)
