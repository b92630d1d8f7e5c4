"""Convolutions against torch's own, with first and second gradients, and what their gradients leave out."""

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from imago.kernels import bias_act, conv2d, conv_transpose2d, convolution, epilogue, modulate, setup_filter

CASES = {   # name -> (call, torch's call, shapes of x and weight, options)
    'same': (conv2d, F.conv2d, (2, 3, 7, 6), (4, 3, 3, 3), {'padding': 1}),
    'stride 2': (conv2d, F.conv2d, (2, 3, 7, 6), (4, 3, 3, 3), {'stride': 2}),
    'stride 2, remainder': (conv2d, F.conv2d, (2, 3, 8, 8), (4, 3, 4, 4), {'stride': 2, 'padding': 1}),
    'groups': (conv2d, F.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {'padding': 1, 'groups': 2}),
    'point': (conv2d, F.conv2d, (2, 3, 4, 5), (5, 3, 1, 1), {}),
    'up': (conv_transpose2d, F.conv_transpose2d, (2, 3, 4, 5), (3, 4, 3, 3), {'stride': 2}),
    'up, padded': (conv_transpose2d, F.conv_transpose2d, (2, 3, 4, 5), (3, 4, 4, 4), {'stride': 2, 'padding': 1}),
}


def inputs_of(name, dtype=torch.float64, layout=torch.contiguous_format):
    call, own, size, kernel, options = CASES[name]
    outputs = kernel[1 if call is conv_transpose2d else 0]
    x = torch.randn(size, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(shape, dtype=dtype).requires_grad_() for shape in (kernel, (outputs,)))
    return (lambda *args: call(*args, **options)), (lambda *args: own(*args, **options)), (x, weight, bias)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_torchs(name, layout):
    ours, own, inputs = inputs_of(name, layout=layout)
    y, expected = ours(*inputs), own(*inputs)
    assert torch.equal(y, expected)
    g = torch.randn_like(y)
    for one, two in zip(grad(y, inputs, g), grad(expected, inputs, g)):
        assert torch.equal(one, two)
    v = [torch.randn_like(tensor) for tensor in inputs]
    g = g.requires_grad_()

    def second(call):
        first = grad(call(*inputs), inputs, g, create_graph=True)
        return grad(sum((one * each).sum() for one, each in zip(first, v)), (*inputs[:2], g))
    for one, two in zip(second(ours), second(own)):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', CASES)
def test_gradients_of_first_and_second_order(name):
    ours, _, inputs = inputs_of(name)
    assert gradcheck(ours, inputs)
    assert gradgradcheck(ours, inputs)


class Calls(TorchDispatchMode):
    """Notes operations, with what tells which gradients they make."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.found.append((op.overloadpacket.__name__, args))
        return op(*args, **(kwargs or {}))

    def of(self, name):
        return [args for found, args in self.found if found == name]


def test_a_penalty_convolves_by_kernels_of_the_weights_size():
    """torch's own double backward convolves by kernels as large as the maps."""
    x, weight = torch.randn(2, 3, 12, 12, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with Calls() as calls:
        first, = grad(conv2d(x, weight, padding=1).square().sum(), x, create_graph=True)
        first.square().sum().backward()
    assert {tuple(args[1].shape[2:]) for args in calls.of('convolution')} == {(3, 3)}
    assert weight.grad is not None


def test_gradients_that_nobody_asked_for_are_not_computed():
    """The first backward of R1 wants those of pictures alone; `needs_input_grad` does not know that."""
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    weight, scale, b = torch.randn(4, 4, 3, 3), torch.rand(2, 4) + 0.5, torch.randn(4)
    noise = torch.randn(2, 1, 8, 8)
    parameters = [tensor.requires_grad_() for tensor in (weight, scale, b, noise)]
    y = epilogue(conv2d(bias_act(modulate(x, scale), b, act='lrelu'), weight, padding=1), scale, noise, b)
    y = epilogue(y, None, None, b, setup_filter([1, 3, 3, 1]), (2, 1, 2, 1))
    for create_graph in (False, True):
        with Calls() as calls:
            grad(y.sum(), x, create_graph=create_graph, retain_graph=True)
        assert not any(args[-1][1] for args in calls.of('convolution_backward'))
        assert not any(args[-1] is True for args in calls.of('bias_act_grad'))
        assert not any(any(args[-3:]) for args in calls.of('epilogue_grad'))
        assert not any(args[-1] is True for args in calls.of('modulate_grad'))
    with Calls() as calls:
        grad(y.sum(), [x, *parameters], retain_graph=True)
    assert any(args[-1][1] for args in calls.of('convolution_backward'))


@pytest.mark.parametrize('name', ['same', 'transposed', 'several parts', 'biased'])
def test_a_matrix_product_does_what_a_convolution_does(monkeypatch, name):
    """GPUs take it for float32; here it is let serve a CPU."""
    x, weight, bias = torch.randn(3, 5, 7, 6), torch.randn(4, 5, 3, 3), torch.randn(4)
    if name == 'transposed':
        weight = weight.transpose(0, 1).contiguous()
    call, own = (conv_transpose2d, F.conv_transpose2d) if name == 'transposed' else (conv2d, F.conv2d)
    inputs = [x.requires_grad_(), weight.requires_grad_(), *([bias.requires_grad_()] if name == 'biased' else [])]
    expected = own(*inputs, padding=1)
    g = torch.randn_like(expected)
    expected_gradients = grad(expected, inputs, g)
    monkeypatch.setattr(convolution, 'PRODUCTS_ON', ('cpu',))
    monkeypatch.setattr(convolution, 'LEAST_CHANNELS', 4)
    monkeypatch.setattr(convolution, 'MOST_BYTES', 7 * 6 * 45 * 4 if name == 'several parts' else 1 << 20)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    with Calls() as calls:
        y = call(*inputs, padding=1)
        found = grad(y, inputs, g, retain_graph=True)
        again = grad(y, inputs, g, create_graph=True)
    assert len(calls.of('mm')) >= 3 and not calls.of('convolution')
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    for one, two, three in zip(found, again, expected_gradients):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(two, three, rtol=1e-4, atol=1e-4)
