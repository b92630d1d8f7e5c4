"""The device that a configuration asks for is one that is there."""

import pytest
import torch

from imago.trainer.ranks import device


def test_apple_gpus_are_taken_where_they_are_and_said_to_be_untested(monkeypatch):
    with pytest.raises(ValueError, match='device=mps, but torch sees no Apple GPU; use device=cpu'):
        device.check_device('mps')
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert device.check_device('mps') == 'mps' and 'could not test' in device.describe_device('mps')
    assert device.memory_of('mps') > 1 << 30
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='takes one process'):
        device.check_device('mps')


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert device.check_device('auto') == device.check_device('cpu') == 'cpu'
    with pytest.raises(ValueError, match='torch sees no CUDA device'):
        device.check_device('cuda')
