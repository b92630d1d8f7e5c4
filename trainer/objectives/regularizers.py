"""This file has the penalties on images, logits and weights. Those on samples return one value each, [N]; callers average."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils.parametrize import is_parametrized

from imago.trainer.config.losses import GRADIENT_PENALTY_NAMES


@dataclass(frozen=True)
class GradientPenalty:
    """With a weight of 1, the penalty adds factor * cost(|grad_x D|^2) at x = points(reals, fakes) to D's loss."""

    points: Callable[[Tensor, Tensor | None], Tensor]      # (reals, fakes) [N, ...] -> x [N, ...]
    cost: Callable[[Tensor], Tensor]                       # |grad_x D|^2 [N] -> [N]
    factor: float = 1.0
    needs_fakes: bool = False


def gradient_norm_squared(logits: Tensor, x: Tensor) -> Tensor:
    """Return |grad_x D(x)|^2 per sample, [N], which can be differentiated again. x [N, ...] requires grad and led to `logits`
    [N, 1]."""
    gradient, = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1)


def at_reals(reals: Tensor, fakes: Tensor | None = None) -> Tensor:
    """reals [N, ...] -> reals"""
    return reals


def at_fakes(reals: Tensor, fakes: Tensor) -> Tensor:
    """reals and fakes [N, ...] -> fakes"""
    return fakes


def between(reals: Tensor, fakes: Tensor) -> Tensor:
    """reals and fakes [N, ...] -> a random point on the line between each real and its fake, [N, ...]"""
    share = torch.rand(len(reals), *[1] * (reals.ndim - 1), dtype=reals.dtype, device=reals.device)
    return reals.lerp(fakes, share)


def around_reals(reals: Tensor, fakes: Tensor | None = None) -> Tensor:
    """reals [N, ...] -> reals plus uniform noise in 0 ... half the batch's standard deviation, [N, ...]"""
    return reals + 0.5 * reals.std() * torch.rand_like(reals)


def squared(norm_squared: Tensor) -> Tensor:
    """|grad_x D|^2 [N] -> the same"""
    return norm_squared


def distance_to_one(norm_squared: Tensor) -> Tensor:
    """|grad_x D|^2 [N] -> (|grad_x D| - 1)^2 [N]"""
    # The square root at exactly 0 has no second derivative.
    return ((norm_squared + 1e-12).sqrt() - 1).square()


GRADIENT_PENALTIES = {
    # gamma / 2 |grad D(x)|^2. Mescheder et al. 2018, equation 9.
    'r1': GradientPenalty(at_reals, squared, factor=0.5),
    # gamma / 2 |grad D(G(z))|^2. Mescheder et al. 2018, equation 10.
    'r2': GradientPenalty(at_fakes, squared, factor=0.5, needs_fakes=True),
    # (|grad D(x + e (G(z) - x))| - 1)^2, e ~ U(0, 1). Gulrajani et al. 2017, equation 3.
    'wgan_gp': GradientPenalty(between, distance_to_one, needs_fakes=True),
    # (|grad D(x + std(x) / 2 e)| - 1)^2, e ~ U(0, 1). Kodali et al. 2017.
    'dragan': GradientPenalty(around_reals, distance_to_one),
}
assert tuple(GRADIENT_PENALTIES) == GRADIENT_PENALTY_NAMES


def drift(real: Tensor) -> Tensor:
    """Return D(x)^2, [N], from logits [N, 1]. Karras et al. 2018, appendix A.1."""
    return real[:, 0].square()


def lecam(real: Tensor, fake: Tensor, real_mean: Tensor | float, fake_mean: Tensor | float) -> Tensor:
    """Return max(0, D(x) - a_F)^2 + max(0, a_R - D(G(z)))^2, [N], from logits [N, 1]. Tseng et al. 2021, as in their code.

    a_R and a_F are moving averages [] of the mean logits of reals and fakes. A real logit below a_F costs nothing, and neither
    does a fake one above a_R.
    """
    return relu(real[:, 0] - fake_mean).square() + relu(real_mean - fake[:, 0]).square()


def move_mean_(mean: Tensor, value: Tensor, decay: float, steps: int) -> None:
    """Move a moving average [...] that began at 0 by the value [...] of one step, after `steps` others; see `weight_so_far`.

    If it is still 0, since its penalty has just been switched on, this value takes the weight of all earlier steps too.
    """
    mean.copy_(torch.where(mean == 0, (1 - decay ** (steps + 1)) * value, mean.lerp(value, 1 - decay)))


def weight_so_far(decay: float, steps: int) -> float:
    """Return by what a moving average that began at 0 must be divided after one or more `steps`. Kingma & Ba 2015, section 3."""
    return 1 - decay ** steps


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Return |J_w^T y| per sample, [N], whose square is averaged over the layers of `ws`. Karras et al. 2020, equation 4.

    `images` [NCHW] were made from `ws` [N, num_ws, w_dim]; `noise` is y ~ N(0, 1), of the images' shape.
    """
    projected = (images * noise).sum() / sqrt(images.shape[2] * images.shape[3])
    gradient, = torch.autograd.grad(projected, ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor) -> Tensor:
    """Return (|J_w^T y| - a)^2 per sample, [N], from lengths [N] and their running mean a []. Karras et al. 2020, equation 4."""
    return (lengths - mean).square()


def orthogonal_penalty(network: nn.Module, relaxed: bool = True) -> Tensor:
    """Sum the penalty over all weights W [outputs, inputs], as a scalar []. Brock et al. 2019, equations 2 (plain), 3 (relaxed).

    plain: |W^T W - 1|^2; relaxed: |W W^T off its diagonal|^2, which leaves the rows' lengths free. Weights are taken before
    spectral norm, but after an equalised layer's gain; embeddings named `shared` are left out. Raises ValueError if there are
    none. The code that BigGAN's authors published, BigGAN-PyTorch, takes half of the relaxed form's gradient.
    """
    matrices = list(_weight_matrices(network))
    if not matrices:
        raise ValueError(f'{type(network).__name__} has no weights of two or more dimensions to keep orthogonal: '
                         'set the weight of the penalty to 0')
    return torch.stack([_overlap(matrix, relaxed) for matrix in matrices]).sum()


def _weight_matrices(network: nn.Module) -> Iterator[Tensor]:
    for name, module in network.named_modules():
        if 'shared' in name.split('.'):
            continue
        normalised = is_parametrized(module, 'weight')
        weight = module.parametrizations.weight.original if normalised else getattr(module, 'weight', None)
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            if isinstance(module, nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)
            yield weight.flatten(1) * getattr(module, 'weight_gain', 1.0)


def _overlap(matrix: Tensor, relaxed: bool) -> Tensor:
    rows = matrix.square().sum(dim=1)
    # |W W^T| = |W^T W|, so the smaller one is taken: a generator's first layer has tens of thousands of rows.
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    if relaxed:
        return gram.square().sum() - rows.square().sum()
    return gram.square().sum() - 2 * rows.sum() + matrix.shape[1]


@torch.no_grad()
def clip_weights_(network: nn.Module, limit: float) -> None:
    """Clamp every parameter to [-limit, limit], in place. Arjovsky et al. 2017, algorithm 1.

    Raises ValueError unless limit > 0.
    """
    if not limit > 0:
        raise ValueError(f'limit {limit} would clip every weight to nothing: give one above 0, 0.01 as published')
    for parameter in network.parameters():
        parameter.clamp_(-limit, limit)
