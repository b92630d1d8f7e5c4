"""Penalties on networks and images. Each returns one value a sample, so that callers average as they need."""

import math

import torch
from torch import Tensor


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1: |grad_x D(x)|^2 per sample, [N]. Mescheder et al. 2018, equation 9 (without gamma / 2).

    `images` [NCHW] require grad and led to `logits` [N, 1].
    """
    gradient, = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """|J_w^T y| per sample, [N], averaged in square over the layers of `ws`. Karras et al. 2020, equation 4.

    `images` [NCHW] came from `ws` [N, num_ws, w_dim]; `noise` is y ~ N(0, 1), of the images' shape.
    """
    projected = (images * noise).sum() / math.sqrt(images.shape[2] * images.shape[3])
    gradient, = torch.autograd.grad(projected, ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor) -> Tensor:
    """(|J_w^T y| - a)^2 per sample, [N], with a the running mean of the lengths. Karras et al. 2020, equation 4."""
    return (lengths - mean).square()
