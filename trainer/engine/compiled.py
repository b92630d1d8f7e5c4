"""Compiled networks that draw the random numbers of uncompiled ones."""

from collections.abc import Callable

import torch
from torch import Tensor


def compiled(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the same function, which is compiled at its first call for the shapes of its arguments."""
    from torch._inductor import config  # this import takes a second

    config.fallback_random = True   # layer noise is then the same as without compiling
    return torch.compile(network, dynamic=False)
