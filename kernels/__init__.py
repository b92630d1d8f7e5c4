"""These are operations on feature maps that PyTorch lacks. They know nothing of GANs."""

from imago.kernels.adain import adain
from imago.kernels.bias_act import bias_act
from imago.kernels.convolution import conv2d, conv_transpose2d
from imago.kernels.epilogue import epilogue
from imago.kernels.library import reference_path, status
from imago.kernels.modulate import modulate
from imago.kernels.upfirdn2d import (
    downsample2d,
    filter2d,
    setup_filter,
    upfirdn2d,
    upsample2d,
)

__all__ = ['adain', 'bias_act', 'conv2d', 'conv_transpose2d', 'downsample2d', 'epilogue', 'filter2d', 'modulate',
           'reference_path', 'setup_filter', 'status', 'upfirdn2d', 'upsample2d']
