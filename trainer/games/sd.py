"""SD-GAN shows pairs of pictures of one identity, whose latents share their first dimensions. Donahue et al. 2018."""

from collections.abc import Callable

from torch import Tensor

from imago.trainer.config import games
from imago.trainer.engine.randomness import Draws
from imago.trainer.games.latent import Latent


class SDGAN(Latent):
    """Rows 2i and 2i + 1 of a batch are a pair, which is one input of D with twice the channels."""

    section = games.SDGAN
    captured = True

    def draw(self, nimg: int, purpose: str) -> Draws:
        draws, own = super().draw(nimg, purpose), self.config.game.identity_dim
        draws.z[1::2, :own] = draws.z[:-1:2, :own]
        return draws

    def outputs(self, D: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """images [NCHW], labels [N, c_dim] -> D's outputs [N / 2, outputs] for the augmented images."""
        return D(self.augmented(images).unflatten(0, (-1, 2)).flatten(1, 2), labels[::2])

    def norms(self, squared: Tensor) -> Tensor:
        """|gradient|^2 of each picture [N] -> that of each pair [N / 2]"""
        return super().norms(squared.unflatten(0, (-1, 2)).sum(dim=1))
