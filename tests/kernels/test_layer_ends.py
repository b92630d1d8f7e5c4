"""epilogue, modulate and adain against their definitions in float64, in all layouts, types and odd sizes."""

import os

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

from imago.kernels import adain, bias_act, epilogue, modulate, setup_filter

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [(2, 3, 5, 6), (3, 70, 9, 7), (1, 4, 37, 70), (2, 5, 1, 1), (0, 3, 4, 4), (2, 16, 64, 65)]
TAPS = setup_filter([1, 3, 3, 1]).to(os.environ['IMAGO_TEST_DEVICE'])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def filtered(x, taps, padding, flip, gain):
    x = F.pad(x, padding)
    kernel = taps.to(x) if flip else taps.to(x).flip([0, 1])
    return F.conv2d(x, (kernel * gain).expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def epilogue_by_definition(x, scale, noise, b, taps=None, padding=(0, 0, 0, 0), flip_filter=False, fir_gain=1.0, alpha=0.2,
                           gain=2 ** 0.5, clamp=None):
    v = x if taps is None else filtered(x, taps, padding, flip_filter, fir_gain)
    y = F.leaky_relu(v * scale[:, :, None, None] + noise + b[:, None, None], alpha) * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


def adain_by_definition(x, scale, shift, noise, b, alpha=0.2, gain=2 ** 0.5, eps=1e-8):
    u = F.leaky_relu(x + noise + b[:, None, None], alpha) * gain
    u = u - u.mean(dim=(2, 3), keepdim=True)
    u = u / (u.square().mean(dim=(2, 3), keepdim=True) + eps).sqrt()
    return u * scale[:, :, None, None] + shift[:, :, None, None]


def leaves(*shapes, dtype=torch.float64, layout=torch.contiguous_format):
    """Make random leaf tensors: the first is a map of `dtype` and `layout`, the others are small, and the second is above 0.5."""
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tensors[1] = tensors[1].abs() + 0.5
    tensors[0] = tensors[0].to(dtype).contiguous(memory_format=layout)
    small = torch.float64 if dtype == torch.float64 else torch.float32
    return [tensor.to(small if i else dtype).requires_grad_() for i, tensor in enumerate(tensors)]


def assert_close(ours, expected, tolerance, what):
    scale = expected.abs().max().clamp(min=1) if expected.numel() else 1
    torch.testing.assert_close(ours.double() / scale, expected / scale, rtol=0, atol=tolerance,
                               msg=lambda text: f'{what}: {text}')


def compare(call, definition, inputs, layout):
    """Compare output and first gradients with the definition, also gradients that can be differentiated again."""
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y, expected = call(*inputs), definition(*exact)
    tolerance = TOLERANCE[y.dtype]
    assert y.dtype == inputs[0].dtype
    assert y.is_contiguous(memory_format=layout) or inputs[0].numel() == 0 or inputs[0].shape[2:].numel() == 1
    assert_close(y, expected.detach(), tolerance, 'output')
    g = torch.randn(y.shape).to(y.dtype)
    expected = grad(expected, exact, g.double())
    for create_graph in (False, True):
        for i, (ours, gradient) in enumerate(zip(grad(call(*inputs), inputs, g, create_graph=create_graph), expected)):
            assert ours.dtype == inputs[i].dtype
            assert_close(ours, gradient, tolerance * 4, f'gradient {i}, create_graph={create_graph}')


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('fir', [False, True], ids=['plain', 'fir'])
def test_epilogue(size, layout, dtype, fir):
    n, c, h, w = size
    # float32 gets no clamp and no kink, as rounding decides on which side of it a value lies
    options = {'gain': 1.5} | ({'clamp': 2.5, 'alpha': 0.1} if dtype == torch.float64 else {'alpha': 1.0})
    if fir:
        options |= {'taps': torch.rand(3, 4) + TAPS[:3], 'padding': (2, 1, 1, 2), 'flip_filter': w % 2 == 0, 'fir_gain': 0.5}
        h, w = h + 1, w
    inputs = leaves(size, (n, c), (n if w % 2 else 1, 1, h, w), (c,), dtype=dtype, layout=layout)
    compare(lambda *args: epilogue(*args, **options), lambda *args: epilogue_by_definition(*args, **options), inputs, layout)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_epilogue_in_low_precision(layout, dtype):
    inputs = leaves((2, 24, 9, 8), (2, 24), (1, 1, 9, 8), (24,), dtype=dtype, layout=layout)
    options = {'taps': TAPS, 'padding': (2, 1, 2, 1), 'alpha': 1.0}  # alpha 1 has no kink, where rounding would choose the side
    compare(lambda *args: epilogue(*args, **options), lambda *args: epilogue_by_definition(*args, **options), inputs, layout)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_modulate(size, layout, dtype):
    compare(modulate, lambda x, scale: x * scale[:, :, None, None], leaves(size, size[:2], dtype=dtype, layout=layout), layout)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('size', [size for size in SIZES if size[2:] != (1, 1)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_adain(size, layout, dtype):
    n, c, h, w = size
    inputs = leaves(size, (n, c), (n, c), (n if w % 2 else 1, 1, h, w), (c,), dtype=dtype, layout=layout)
    compare(adain, adain_by_definition, inputs, layout)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_adain_and_bias_act_in_low_precision(layout, dtype):
    inputs = leaves((2, 24, 9, 8), (2, 24), (2, 24), (1, 1, 9, 8), (24,), dtype=dtype, layout=layout)
    compare(lambda *args: adain(*args, alpha=1.0), lambda *args: adain_by_definition(*args, alpha=1.0), inputs, layout)
    inputs = leaves((2, 24, 9, 8), (24,), dtype=dtype, layout=layout)
    compare(lambda x, b: bias_act(x, b, act='lrelu', alpha=1.0, gain=1.5), lambda x, b: (x + b[:, None, None]) * 1.5, inputs, layout)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
def test_adain_of_maps_far_from_0_keeps_its_precision(layout):
    """A sum of squares minus a squared sum would lose all digits here."""
    x = (torch.randn(2, 8, 80, 70) * 0.1 + 1000).contiguous(memory_format=layout)
    ones, zeros = torch.ones(2, 8), torch.zeros(2, 8)
    expected = adain_by_definition(x.double(), ones.double(), zeros.double(), torch.zeros(1, 1, 80, 70), torch.zeros(8))
    torch.testing.assert_close(adain(x, ones, zeros).double(), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize('options', [{}, {'taps': TAPS, 'padding': (2, 1, 1, 1), 'fir_gain': 4.0, 'clamp': 3.0},
                                     {'taps': TAPS, 'padding': (-1, 1, 2, 0)}], ids=['plain', 'fir', 'crop'])
def test_epilogue_gradients_of_first_and_second_order(options):
    w = 4 + sum(options.get('padding', (0,) * 4)[:2]) - (3 if options else 0)
    h = 5 + sum(options.get('padding', (0,) * 4)[2:]) - (3 if options else 0)
    inputs = leaves((2, 3, 5, 4), (2, 3), (2, 1, h, w), (3,))

    def call(*args):
        return epilogue(*args, **options)
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_other_gradients_of_first_and_second_order():
    assert gradcheck(modulate, leaves((2, 3, 4, 3), (2, 3)))
    assert gradgradcheck(modulate, leaves((2, 3, 4, 3), (2, 3)))
    inputs = leaves((2, 3, 4, 3), (2, 3), (2, 3), (1, 1, 4, 3), (3,))
    assert gradcheck(adain, inputs)
    assert gradgradcheck(adain, inputs)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
def test_views_at_odd_offsets(layout):
    """Vector loads need alignment; a view need not have it."""
    whole = torch.randn(3 * 8 * 6 * 5 + 1)
    strides = {torch.contiguous_format: (240, 30, 5, 1), torch.channels_last: (240, 1, 40, 8)}[layout]
    x = whole.as_strided((3, 8, 6, 5), strides, 1)
    scale, b = torch.rand(3, 8) + 0.5, torch.randn(8)
    same = x.clone()
    assert torch.equal(epilogue(x, scale, b=b), epilogue(same, scale, b=b))
    assert torch.equal(modulate(x, scale), modulate(same, scale))
    assert torch.equal(adain(x, scale, scale), adain(same, scale, scale))


@pytest.mark.parametrize('view', [lambda x: x[:, :4, ::2, ::2], lambda x: x[:1, :4, :4, :4].expand(2, -1, -1, -1),
                                  lambda x: x[:, ::2, :4, :4], lambda x: x[:, :4, :4, :4].transpose(2, 3)])
def test_maps_that_are_not_dense(view):
    x = view(torch.randn(2, 8, 8, 8))
    scale = torch.rand(2, 4) + 0.5
    torch.testing.assert_close(epilogue(x, scale), epilogue(x.contiguous(), scale), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(modulate(x, scale), modulate(x.contiguous(), scale), rtol=0, atol=0)


@pytest.mark.parametrize('call, message', [
    (lambda x: epilogue(x, torch.ones(2, 4)), r'scale of shape \[2, 4\] does not fit x of shape \[2, 3, 4, 5\]'),
    (lambda x: epilogue(x, noise=torch.ones(2, 1, 4, 4)), r'noise of shape \[2, 1, 4, 4\]'),
    (lambda x: epilogue(x, b=torch.ones(2)), r'b of shape \[2\]'),
    (lambda x: epilogue(x, taps=torch.ones(9, 1)), r'would be empty \(-4x5\)'),
    (lambda x: epilogue(x, alpha=0.0), 'alpha 0.0 is not positive'),
    (lambda x: epilogue(x, clamp=-1.0), 'clamp -1.0 is negative'),
    (lambda x: modulate(x, torch.ones(3)), r'scale of shape \[3\]'),
    (lambda x: adain(x, torch.ones(2, 3), torch.ones(3)), r'shift of shape \[3\]'),
])
def test_impossible_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3, 4, 5))
