"""Operations on feature maps that PyTorch lacks. They know nothing of GANs."""

from kernels.bias_act import bias_act
from kernels.upfirdn2d import (
    downsample2d,
    filter2d,
    setup_filter,
    upfirdn2d,
    upsample2d,
)

__all__ = ['bias_act', 'downsample2d', 'filter2d', 'setup_filter', 'status', 'upfirdn2d', 'upsample2d']


def status() -> dict[str, str]:
    """Which implementation serves each operation: so far always 'reference', plain PyTorch."""
    return {'upfirdn2d': 'reference', 'bias_act': 'reference'}
