"""The registered operations as torch sees them: opcheck, torch.compile, penalties inside compiled functions, determinism."""

import os

import pytest
import torch
from torch.autograd import grad

from imago import kernels
from imago.kernels import adain, bias_act, epilogue, modulate, setup_filter, upfirdn2d
from imago.kernels.bias_act import NUMBERS
from imago.kernels.library import serves

TAPS = setup_filter([1, 3, 3, 1])
compiled_kernels = pytest.mark.skipif(not serves(os.environ['IMAGO_TEST_DEVICE']), reason='plain PyTorch serves: no operation')


def maps(*shape, layout=torch.channels_last, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()


def operations():
    """name -> arguments"""
    x, g = maps(2, 4, 6, 5), maps(2, 4, 6, 5)
    scale, noise, b = torch.rand(2, 4) + 0.5, torch.randn(2, 1, 6, 5), torch.randn(4)
    numbers = (0.2, 1.5, 3.0)
    sums = torch.ops.imago.adain(x.detach(), noise, b, scale, scale, 0.2, 1.0, 1e-8)
    return {
        'upfirdn2d': (x, TAPS.to(x.device), 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0),
        'bias_act': (x, b.requires_grad_(), 1, NUMBERS['lrelu'], *numbers),
        'bias_act_grad': (g, x.detach(), None, 1, NUMBERS['lrelu'], 1, *numbers, True),
        'epilogue': (x, TAPS.to(x.device), 2, 1, 2, 1, False, 4.0, scale.requires_grad_(), noise.requires_grad_(), b, *numbers),
        'epilogue_grad': (g.detach(), x.detach(), scale.detach(), noise.detach(), b.detach(), *numbers, True, False, True),
        'modulate': (x, scale),
        'modulate_grad': (g.detach(), x.detach(), scale.detach(), True),
        'adain': (x, noise, b, scale, scale, 0.2, 1.0, 1e-8),
        'adain_grad': (g.detach(), x.detach(), noise.detach(), b.detach(), scale.detach(), *sums[1:], 0.2, 1.0, True, False),
    }


@compiled_kernels
@pytest.mark.parametrize('name', ['upfirdn2d', 'bias_act', 'bias_act_grad', 'epilogue', 'epilogue_grad', 'modulate', 'modulate_grad',
                                  'adain', 'adain_grad'])
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.imago, name).default, operations()[name])


def layer(x, weight, scale, b):
    """One of each."""
    x = modulate(upfirdn2d(x, TAPS, up=2, padding=(2, 1, 2, 1), gain=4), scale)
    x = epilogue(torch.nn.functional.conv2d(x, weight, padding=1), scale, None, b, taps=TAPS, padding=(2, 1, 2, 1))
    x = bias_act(adain(x, scale, scale), b, act='lrelu', clamp=2)
    return bias_act(x, act='tanh')


def layer_inputs():
    torch.manual_seed(0)
    return [tensor.detach().requires_grad_() for tensor in (maps(2, 4, 6, 5), torch.randn(4, 4, 3, 3), torch.rand(2, 4) + 0.5,
                                                            torch.randn(4))]


def penalty(x, *rest):
    """Compute a penalty like R1, whose gradients to the weights are gradients of a gradient."""
    gradient, = grad(layer(x, *rest).square().sum(), x, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize('function', [layer, penalty])
def test_compiled_in_one_graph(function):
    torch._dynamo.reset()
    inputs = layer_inputs()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        ours = torch.compile(function, fullgraph=True, backend='aot_eager')(*inputs)
    expected = function(*inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    for own, other in zip(grad(ours.sum(), inputs), grad(expected.sum(), inputs)):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('act', ['tanh', 'sigmoid', 'elu', 'selu', 'softplus', 'swish'])
def test_third_derivative(act):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
    b = torch.tensor([0.3], dtype=torch.float64)

    def derivative(call):
        y = call()
        for _ in range(3):
            y, = grad(y.sum(), x, create_graph=True)
        return y
    ours = derivative(lambda: bias_act(x, b, act=act, gain=1.5))
    with kernels.reference_path():
        torch.testing.assert_close(ours, derivative(lambda: bias_act(x, b, act=act, gain=1.5)), rtol=1e-9, atol=1e-9)


@compiled_kernels
def test_the_number_of_threads_changes_no_bit():
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([call() for call in large_calls()])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def large_calls():
    torch.manual_seed(1)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, g = torch.randn(3, 40, 96, 70).contiguous(memory_format=layout), torch.randn(3, 40, 96, 70)
        scale, noise, b = torch.rand(3, 40) + 0.5, torch.randn(3, 1, 96, 70), torch.randn(40)
        for index in range(4):
            yield lambda i=index, x=x, g=g: torch.ops.imago.epilogue_grad(g, x, scale, noise, b, 0.2, 1.5, 3.0, True, True, True)[i]
        yield lambda x=x, g=g: torch.ops.imago.bias_act_grad(g, x, None, 1, NUMBERS['lrelu'], 1, 0.2, 1.5, 3.0, True)[1]
        yield lambda x=x, g=g: torch.ops.imago.modulate_grad(g, x, scale, True)[1]
        yield lambda x=x: upfirdn2d(x, TAPS, up=2, padding=(2, 1, 2, 1))
