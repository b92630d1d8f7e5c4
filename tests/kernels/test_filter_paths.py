"""upfirdn2d and epilogue against their definition where kernels have fast paths: usual taps, vectors, many tiles."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imago.kernels import epilogue, upfirdn2d

LAYOUTS = [torch.contiguous_format, torch.channels_last]
# in low precision plain PyTorch rounds after each operation
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 2e-3}
CASES = [((4, 4), 1, 1), ((4, 4), 2, 1), ((4, 4), 1, 2), ((3, 3), 1, 1), ((3, 3), 2, 1), ((3, 3), 1, 2), ((2, 4), 1, 1),
         ((12,), 2, 1), ((12,), 1, 2), ((3, 5), (3, 2), (2, 1))]
PADDINGS = [(2, 1, 2, 1), (1, 2, 3, 2), (-1, 6, 5, -2), (13, 14, 12, 13)]


def by_definition(x: Tensor, taps: Tensor, up: tuple, down: tuple, padding: tuple, flip: bool, gain: float) -> Tensor:
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up[1], w * up[0], dtype=torch.float64)
    spread[:, :, ::up[1], ::up[0]] = x
    taps = taps.to(x.device)
    taps = taps.double() if taps.ndim == 2 else taps.double().outer(taps.double())
    taps = (taps if flip else taps.flip([0, 1])) * gain
    return F.conv2d(F.pad(spread, padding).flatten(0, 1)[:, None], taps[None, None]).unflatten(0, (n, c))[
        :, :, 0, ::down[1], ::down[0]]


def assert_close(ours: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(ours.double() / scale, expected / scale, rtol=0, atol=TOLERANCE[ours.dtype])


def maps(size: tuple, dtype: torch.dtype, layout: torch.memory_format, offset: int = 0) -> Tensor:
    """Make random maps [NCHW] that begin `offset` elements into their storage."""
    n, c, h, w = size
    x = torch.empty(n * c * h * w + offset, dtype=dtype)[offset:].copy_(torch.randn(n * c * h * w))
    return x.view(n, h, w, c).permute(0, 3, 1, 2) if layout == torch.channels_last else x.view(size)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size, offset', [((2, 8, 9, 8), 0), ((1, 16, 40, 11), 0), ((1, 3, 70, 130), 0),
                                          ((1, 8, 9, 8), 1), ((2, 8, 1, 1), 0)], ids=str)
@pytest.mark.parametrize('taps, up, down', CASES, ids=str)
def test_upfirdn2d(size, offset, dtype, layout, taps, up, down):
    torch.manual_seed(0)
    x, taps = maps(size, dtype, layout, offset), torch.randn(taps)
    pairs = [(factor, factor) if isinstance(factor, int) else factor for factor in (up, down)]
    paddings = PADDINGS[:1] if size[3] > 100 else PADDINGS[-1:] if size[3] == 1 or len(taps) > 4 else PADDINGS
    for i, padding in enumerate(paddings):
        y = upfirdn2d(x, taps, up, down, padding, flip_filter=bool(i % 2), gain=1.5)
        assert_close(y, by_definition(x, taps, *pairs, padding, bool(i % 2), 1.5))


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('size', [(1, 8, 0, 4), (1, 8, 4, 0)], ids=str)
def test_maps_without_pixels_give_zeros(size, layout):
    y = upfirdn2d(torch.empty(size, memory_format=layout), torch.rand(4, 4), padding=4)
    assert y.shape == (1, 8, size[2] + 5, size[3] + 5) and not y.any()


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [(2, 8, 9, 8), (1, 8, 70, 34), (2, 3, 5, 131)], ids=str)
@pytest.mark.parametrize('taps_size', [(4, 4), (3, 3)], ids=str)
def test_epilogue_after_taps(taps_size, size, dtype, layout):
    torch.manual_seed(0)
    for padding, one_noise in product(PADDINGS[:2], (False, True)):
        x, taps = maps(size, dtype, layout), torch.rand(taps_size)
        v = by_definition(x, taps, (1, 1), (1, 1), padding, False, 0.5)
        scale, b = torch.rand(size[:2]) + 0.5, torch.randn(size[1])
        noise = torch.randn(1 if one_noise else size[0], 1, *v.shape[2:])
        y = epilogue(x, scale, noise, b, taps, padding, fir_gain=0.5, gain=1.5, clamp=2)
        u = v * scale.double()[:, :, None, None] + noise.double() + b.double()[:, None, None]
        assert_close(y, (F.leaky_relu(u, 0.2) * 1.5).clamp(-2, 2))
