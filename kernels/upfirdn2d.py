"""Up-sample, FIR-filter and down-sample pictures in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from imago.kernels.library import serves
from imago.kernels.ops import differentiable, empty_map, small_dtype

Padding = tuple[int, int, int, int]  # left, right, top, bottom: pixels of the up-sampled picture, negative to crop


def setup_filter(taps: Sequence | Tensor, normalize: bool = True) -> Tensor:
    """Return taps for `upfirdn2d`, float32 on the CPU: [taps] or [height, width], with sum 1 if `normalize`.

    Fewer than 8 separable taps are returned as their outer product, as one pass of 4x4 taps is faster than two of 4.
    Raises ValueError for no taps, other shapes, or a sum of 0.
    """
    taps = torch.as_tensor(taps, dtype=torch.float32, device='cpu')  # real, even under torch.device('meta')
    _check_taps(taps)
    if normalize:
        if taps.sum() == 0:
            raise ValueError('the taps sum to 0: give others, or normalize=False')
        taps = taps / taps.sum()
    return taps.outer(taps) if taps.ndim == 1 and len(taps) < 8 else taps


def upfirdn2d(x: Tensor, taps: Tensor, up: int | Sequence[int] = 1, down: int | Sequence[int] = 1,
              padding: int | Sequence[int] = 0, flip_filter: bool = False, gain: float = 1.0) -> Tensor:
    """Insert up-1 zeros after each pixel, pad, convolve with `taps` times `gain`, keep every down-th pixel.

    x: [NCHW], any floating type and memory format. taps: [taps] separable, or [height, width]; they get no gradient.
    up, down: int or (x, y). padding: int, (x, y) or (left, right, top, bottom), in up-sampled pixels, negative to crop.
    flip_filter: correlate instead. The result is [N, C, (H*up + top + bottom - taps) // down + 1, ...], of x's type.
    It is differentiable any number of times. Raises ValueError for impossible arguments, an empty output among them.
    """
    up, down, padding = _pair('up', up), _pair('down', down), _four(padding)
    _check_taps(taps)
    if x.ndim != 4:
        raise ValueError(f'x has shape {list(x.shape)}: upfirdn2d needs [N, C, H, W]')
    height, width = (taps.shape * 2)[:2]
    out_height = _out_size(x.shape[2], height, up[1], down[1], padding[2:])
    out_width = _out_size(x.shape[3], width, up[0], down[0], padding[:2])
    if out_height < 1 or out_width < 1:
        raise ValueError(f'upfirdn2d of {list(x.shape)} with {height}x{width} taps, up {up}, down {down} and padding '
                         f'{padding} would be empty ({out_height}x{out_width}): pad more or crop less')

    taps = taps.to(x.device, small_dtype(x))
    if taps.ndim == 2:
        return resample(x, taps, up, down, padding, flip_filter, gain)
    x = resample(x, taps[None, :], (up[0], 1), (down[0], 1), (*padding[:2], 0, 0), flip_filter, gain)
    return resample(x, taps[:, None], (1, up[1]), (1, down[1]), (0, 0, *padding[2:]), flip_filter, 1.0)


def filter2d(x: Tensor, taps: Tensor, gain: float = 1.0) -> Tensor:
    """Filter x [NCHW] and keep its size."""
    height, width = (taps.shape * 2)[:2]
    return upfirdn2d(x, taps, padding=(width // 2, (width - 1) // 2, height // 2, (height - 1) // 2), gain=gain)


def upsample2d(x: Tensor, taps: Tensor, up: int = 2) -> Tensor:
    """Up-sample x [NCHW] to [N, C, H*up, W*up] and keep its brightness."""
    left_top = [(size + up - 1) // 2 for size in (taps.shape * 2)[:2]]
    right_bottom = [(size - up) // 2 for size in (taps.shape * 2)[:2]]
    return upfirdn2d(x, taps, up=up, padding=(left_top[1], right_bottom[1], left_top[0], right_bottom[0]), gain=up ** 2)


def downsample2d(x: Tensor, taps: Tensor, down: int = 2) -> Tensor:
    """Down-sample x [NCHW] to [N, C, H/down, W/down] and keep its brightness."""
    left_top = [(size - down + 1) // 2 for size in (taps.shape * 2)[:2]]
    right_bottom = [(size - down) // 2 for size in (taps.shape * 2)[:2]]
    return upfirdn2d(x, taps, down=down, padding=(left_top[1], right_bottom[1], left_top[0], right_bottom[0]))


def resample(x: Tensor, taps: Tensor, up: tuple[int, int], down: tuple[int, int], padding: Padding, flip: bool,
             gain: float) -> Tensor:
    """Do what `upfirdn2d` does to x [NCHW], with checked arguments: taps [height, width] on x's device, of `small_dtype(x)`."""
    if serves(x.device.type):
        return _upfirdn2d(x, taps, *up, *down, *padding, flip, gain)
    return _UpFirDn2d.apply(x, (taps.flip([0, 1]) if flip else taps) * gain, up, down, padding)


def gradient_padding(size: Sequence[int], out_size: Sequence[int], taps: Sequence[int], up: tuple[int, int],
                     down: tuple[int, int], padding: Padding) -> Padding:
    """Return the padding for the gradient of upfirdn2d, which is upfirdn2d with up and down swapped and the taps turned.

    size, out_size, taps: [..., height, width] of the input, the output and the filter.
    """
    result: list[int] = []
    for axis in range(2):
        length = taps[-1 - axis]
        before = length - 1 - padding[2 * axis]
        result += [before, (size[-1 - axis] - 1) * up[axis] + length - out_size[-1 - axis] * down[axis] - before]
    return result[0], result[1], result[2], result[3]


torch.library.define('imago::upfirdn2d', '(Tensor x, Tensor taps, int up_x, int up_y, int down_x, int down_y, int left, '
                                         'int right, int top, int bottom, bool flip, float gain) -> Tensor')


@torch.library.register_fake('imago::upfirdn2d')
def _fake(x, taps, up_x, up_y, down_x, down_y, left, right, top, bottom, flip, gain) -> Tensor:
    height = _out_size(x.shape[2], taps.shape[0], up_y, down_y, (top, bottom))
    width = _out_size(x.shape[3], taps.shape[1], up_x, down_x, (left, right))
    return empty_map(x, (*x.shape[:2], height, width))


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    x, taps, *options = inputs
    ctx.save_for_backward(taps)
    ctx.up, ctx.down, ctx.padding, (ctx.flip, ctx.gain) = options[:2], options[2:4], options[4:8], options[8:]
    ctx.size = x.shape


def _backward(ctx, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    taps, = ctx.saved_tensors
    if grad is not None:
        padding = gradient_padding(ctx.size, grad.shape, taps.shape, ctx.up, ctx.down, ctx.padding)
        grad = _upfirdn2d(grad, taps, *ctx.down, *ctx.up, *padding, not ctx.flip, ctx.gain)
    return grad, *[None] * 11


_upfirdn2d = differentiable('upfirdn2d', _setup, _backward)


class _UpFirDn2d(torch.autograd.Function):
    """This is the twin in plain PyTorch, for x [NCHW] and taps [height, width]. It returns [NCHW] of the size of `upfirdn2d`'s.

    It has the same kind of gradient, which is faster than that of the convolutions in it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, taps: Tensor, up: tuple[int, int], down: tuple[int, int], padding: Padding) -> Tensor:
        ctx.save_for_backward(taps)
        ctx.up, ctx.down, ctx.padding, ctx.size = up, down, padding, x.shape
        return _torch_upfirdn2d(x, taps, up, down, padding)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        taps, = ctx.saved_tensors
        padding = gradient_padding(ctx.size, grad.shape, taps.shape, ctx.up, ctx.down, ctx.padding)
        return _UpFirDn2d.apply(grad, taps.flip([0, 1]), ctx.down, ctx.up, padding), None, None, None, None


def _torch_upfirdn2d(x: Tensor, taps: Tensor, up: tuple[int, int], down: tuple[int, int], padding: Padding) -> Tensor:
    """Compute it by depth-wise convolutions, strided or transposed, which skip the zeros that `up` inserts."""
    channels, (height, width) = x.shape[1], taps.shape
    if 0 in x.shape[2:]:    # convolutions refuse maps without pixels, which are all padding
        return x.new_zeros(*x.shape[:2], _out_size(x.shape[2], height, up[1], down[1], padding[2:]),
                           _out_size(x.shape[3], width, up[0], down[0], padding[:2]))
    if up == (1, 1):
        kernel = taps.flip([0, 1]).to(x.dtype).expand(channels, 1, height, width)
        common, rest = _split(padding)
        x = F.pad(x, rest) if any(rest) else x
        return F.conv2d(x, kernel, stride=down[::-1], padding=common, groups=channels)
    kernel = taps.to(x.dtype).expand(channels, 1, height, width)
    # the transposed convolution's own output is padded by taps-1 before and by taps-up after
    left, right, top, bottom = padding
    common, rest = _split((width - 1 - left, width - up[0] - right, height - 1 - top, height - up[1] - bottom))
    y = F.conv_transpose2d(x, kernel, stride=up[::-1], padding=common, groups=channels)
    y = F.pad(y, [-crop for crop in rest]) if any(rest) else y
    return y[:, :, ::down[1], ::down[0]] if down != (1, 1) else y


def _split(padding: Padding) -> tuple[tuple[int, int], Padding]:
    """Return the part of the padding that both ends share, (y, x), which convolutions do themselves, and the rest."""
    x, y = max(min(padding[:2]), 0), max(min(padding[2:]), 0)
    return (y, x), (padding[0] - x, padding[1] - x, padding[2] - y, padding[3] - y)


def _out_size(size: int, taps: int, up: int, down: int, padding: Sequence[int]) -> int:
    return (size * up + sum(padding) - taps) // down + 1


def _check_taps(taps: Tensor) -> None:
    if taps.ndim not in (1, 2) or taps.numel() == 0:
        raise ValueError(f'taps have shape {list(taps.shape)}: give [taps] (separable) or [height, width], not empty')


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f'{name} is {value}: give one int or (x, y), at least 1')
    return pair


def _four(padding: int | Sequence[int]) -> Padding:
    four = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    four = (four[0], four[0], four[1], four[1]) if len(four) == 2 else four
    if len(four) != 4:
        raise ValueError(f'padding is {padding}: give one int, (x, y) or (left, right, top, bottom)')
    return four
