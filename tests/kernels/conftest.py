"""IMAGO_TEST_DEVICE=cuda runs the suites of values and gradients on a GPU."""

import os

import pytest
import torch

DEVICE = os.environ.setdefault('IMAGO_TEST_DEVICE', 'cpu')


@pytest.fixture(autouse=True)
def device():
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield
