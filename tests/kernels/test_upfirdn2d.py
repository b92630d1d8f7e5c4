"""Against recorded outputs of another implementation, and against finite differences."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.autograd import gradcheck, gradgradcheck

from imago.kernels import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

GOLDEN = Path(__file__).parents[1] / 'golden' / 'upfirdn2d.safetensors'


def golden_cases() -> list[tuple]:
    with safe_open(GOLDEN, 'pt', os.environ['IMAGO_TEST_DEVICE']) as file:
        cases = json.loads(file.metadata()['cases'])
        return [(case, *(file.get_tensor(f'{name}{case["i"]}') for name in 'xfy')) for case in cases]


def options(case: dict) -> dict:
    return {'padding': case['padding_x0x1y0y1'], **{name: case[name] for name in ('up', 'down', 'flip_filter', 'gain')}}


CASES = golden_cases()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('case, x, taps, y', CASES, ids=lambda value: value['i'] if isinstance(value, dict) else '')
def test_golden(case, x, taps, y, layout):
    ours = upfirdn2d(x.contiguous(memory_format=layout), taps, **options(case))
    torch.testing.assert_close(ours, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('number', [3, 9, 14, 16, 18, 31, 50, 68])
def test_gradients_of_first_and_second_order(number):
    case, x, taps, _ = CASES[number]
    x = x[:1, :2, :6, :5].clone().requires_grad_()
    wider = {**options(case), 'padding': [side + 3 for side in case['padding_x0x1y0y1']]}

    def call(x):
        return upfirdn2d(x, taps, **wider)
    assert gradcheck(call, x)
    assert gradgradcheck(lambda x: call(x) ** 2, x)


def test_cropping_gradient_reaches_no_cropped_pixel():
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    upfirdn2d(x, torch.ones(1, 1), padding=(-1, 0, 0, -2)).sum().backward()
    expected = torch.ones(6, 6, dtype=torch.float64)
    expected[:, 0] = expected[4:] = 0
    torch.testing.assert_close(x.grad[0, 0], expected)


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize('up, down', [(1, 1), (2, 1), (1, 2)])
def test_lower_precisions_keep_their_type(dtype, tolerance, up, down):
    x, taps = torch.randn(2, 3, 8, 8), setup_filter([1, 3, 3, 1])
    y = upfirdn2d(x.to(dtype), taps, up, down, padding=(2, 1, 2, 1))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), upfirdn2d(x.double(), taps, up, down, padding=(2, 1, 2, 1)),
                               rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('taps', [[1, 3, 3, 1], [1, 2, 1], [1, 7, 21, 35, 35, 21, 7, 1]])
def test_resampling_keeps_constants_away_from_the_edge(taps):
    x, taps = torch.ones(1, 2, 12, 10), setup_filter(taps)
    for resample, size in (filter2d, (12, 10)), (upsample2d, (24, 20)), (downsample2d, (6, 5)):
        resampled = resample(x, taps)
        assert resampled.shape == (1, 2, *size)
        torch.testing.assert_close(resampled[:, :, size[0] // 2, size[1] // 2], torch.ones(1, 2))


def test_up_and_down_sampling_are_centred():
    ramp = torch.arange(16.).expand(1, 1, 16, 16)
    taps = setup_filter([1, 3, 3, 1])
    torch.testing.assert_close(upsample2d(ramp, taps)[0, 0, 16, 8:24], (torch.arange(8, 24) - 0.5) / 2)
    torch.testing.assert_close(downsample2d(ramp, taps)[0, 0, 4, 2:6], torch.arange(2, 6) * 2 + 0.5)


def test_setup_filter_normalizes_each_axis():
    torch.testing.assert_close(setup_filter([1, 3, 3, 1]).sum(), torch.tensor(1., device='cpu'))
    assert setup_filter([1, 3, 3, 1]).shape == (4, 4)
    assert setup_filter(range(1, 9)).shape == (8,)
    assert setup_filter([[2., 2.]], normalize=False).tolist() == [[2, 2]]


@pytest.mark.parametrize('arguments, message', [
    ({'padding': -3}, 'would be empty'),
    ({'up': 0}, 'up is 0'),
    ({'down': (1, 2, 3)}, r'down is \(1, 2, 3\)'),
    ({'padding': (1, 2, 3)}, r'padding is \(1, 2, 3\)'),
    ({'taps': torch.ones(1, 1, 1)}, r'taps have shape \[1, 1, 1\]'),
    ({'x': torch.ones(4, 4)}, r'x has shape \[4, 4\]'),
])
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        upfirdn2d(**{'x': torch.ones(1, 1, 5, 5), 'taps': torch.ones(2, 2)} | arguments)


def test_impossible_taps():
    with pytest.raises(ValueError, match='not empty'):
        setup_filter([])
    with pytest.raises(ValueError, match='sum to 0'):
        setup_filter([1, -1])
