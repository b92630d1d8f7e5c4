import os

import pytest
import torch
from shards_for_tests import write_dataset

# tiny networks: threads would only wait for one another
os.environ['OMP_NUM_THREADS'] = '1'
torch.set_num_threads(1)
# kernels that do not build must fail here, not be passed over
os.environ.setdefault('IMAGO_KERNELS', 'strict')


@pytest.fixture(scope='session')
def shards(tmp_path_factory):
    """A labelled dataset of 30 pictures of 16 px in 3 shards."""
    return write_dataset(tmp_path_factory.mktemp('dataset'), (13, 10, 7), classes=3, size=16)


@pytest.fixture(scope='session')
def wide_shards(tmp_path_factory):
    """The same of 32 px, the smallest size of BigGAN's tables."""
    return write_dataset(tmp_path_factory.mktemp('dataset32'), (13, 10, 7), classes=3, size=32)


def pytest_configure(config):
    # DCP says so at each save and load of a single process
    config.addinivalue_line('filterwarnings', 'ignore:torch.distributed is disabled, unavailable or uninitialized')
