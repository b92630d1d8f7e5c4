"""Against recorded values, gradients and second gradients of another implementation, and against finite differences."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.autograd import grad, gradcheck, gradgradcheck

from imago.kernels import bias_act
from imago.kernels.bias_act import ACTIVATIONS

GOLDEN = Path(__file__).parents[1] / 'golden' / 'bias_act.safetensors'


def golden_cases() -> list[tuple[dict, dict]]:
    with safe_open(GOLDEN, 'pt', os.environ['IMAGO_TEST_DEVICE']) as file:
        names = ('x', 'b', 'y', 'gy', 'gx', 'gb', 'v', 'gxx')
        return [(case, {name: file.get_tensor(f'{name}{case["i"]}') for name in names})
                for case in json.loads(file.metadata()['cases'])]


@pytest.mark.parametrize('case, tensors', golden_cases(), ids=lambda value: value.get('act', ''))
def test_golden(case, tensors):
    x, b = tensors['x'].requires_grad_(), tensors['b'].requires_grad_()
    y = bias_act(x, b, act=case['act'], alpha=case['alpha'], gain=case['gain'], clamp=case['clamp'])
    gx, gb = grad(y, (x, b), tensors['gy'], create_graph=True)
    gxx = grad((gx * tensors['v']).sum(), x)[0] if gx.requires_grad else torch.zeros_like(x)
    for ours, name in ((y, 'y'), (gx, 'gx'), (gb, 'gb'), (gxx, 'gxx')):
        torch.testing.assert_close(ours, tensors[name], rtol=1e-9, atol=1e-9, msg=lambda text: f'{name}: {text}')


@pytest.mark.parametrize('act', ACTIVATIONS)
def test_gradients_of_first_and_second_order(act):
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64) + 0.01
    b = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    inputs = (x.requires_grad_(), b.requires_grad_())

    def call(x, b):
        return bias_act(x, b, act=act, gain=1.5, clamp=2.0)
    assert gradcheck(call, inputs)
    assert gradgradcheck(lambda x, b: call(x, b) ** 2, inputs)


@pytest.mark.parametrize('act', ACTIVATIONS)
def test_input_is_left_alone(act):
    x = torch.randn(4, 3)
    before = x.clone()
    for options in ({}, {'b': torch.ones(3)}, {'gain': 1.0}):
        bias_act(x, act=act, **options)
        assert torch.equal(x, before)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_and_memory_format_are_kept(dtype):
    x, b = torch.randn(2, 4, 5, 5), torch.randn(4)
    y = bias_act(x.to(dtype).contiguous(memory_format=torch.channels_last), b, act='lrelu', clamp=1.0)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.float(), bias_act(x, b, act='lrelu', clamp=1.0), rtol=2e-2, atol=5e-2)


def test_bias_along_another_dimension():
    x, b = torch.randn(2, 3, 4), torch.randn(4)
    torch.testing.assert_close(bias_act(x, b, dim=2), x + b)
    torch.testing.assert_close(bias_act(x, b, dim=-1), x + b)


@pytest.mark.parametrize('arguments, message', [
    ({'act': 'gelu'}, "activation 'gelu' is unknown"),
    ({'b': torch.ones(4)}, r'bias of shape \[4\]'),
    ({'dim': 2}, 'dim 2 is out of range'),
    ({'act': 'tanh', 'alpha': 0.1}, 'alpha 0.1 has no meaning'),
    ({'gain': -1.0}, 'gain -1.0 is negative'),
    ({'clamp': -1.0}, 'clamp -1.0 is negative'),
])
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bias_act(torch.ones(2, 3), **arguments)
