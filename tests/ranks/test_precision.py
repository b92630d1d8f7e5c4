"""What a run asks of a GPU: to repeat its bits, and which bits of float32 count."""

import pytest
import torch
from runs_for_tests import tiny_config

from imago.trainer import start
from imago.trainer.ranks import dist
from imago.trainer.ranks.precision import describe_promise, set_precision, without_tf32


def flags():
    cudnn = torch.backends.cudnn
    return {'convolutions': cudnn.allow_tf32, 'matmul': torch.backends.cuda.matmul.allow_tf32, 'benchmark': cudnn.benchmark,
            'deterministic': cudnn.deterministic}


@pytest.fixture(autouse=True)
def usual_flags():
    before = flags()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before['convolutions'], before['matmul']
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before['benchmark'], before['deterministic']


@pytest.mark.filterwarnings('error')
def test_a_gpu_repeats_bits_and_reads_all_of_them_unless_told_otherwise():
    set_precision('cuda')
    assert flags() == {'convolutions': False, 'matmul': False, 'benchmark': False, 'deterministic': True}
    set_precision('cuda', tf32=True, cudnn_benchmark=True, deterministic=False)
    assert flags() == {'convolutions': True, 'matmul': False, 'benchmark': True, 'deterministic': False}
    with without_tf32():
        assert not flags()['convolutions']
    assert flags()['convolutions']


@pytest.mark.parametrize('kind', ['cpu', 'mps'])
def test_other_devices_are_left_alone(kind):
    before = flags()
    set_precision(kind, tf32=not before['convolutions'], cudnn_benchmark=not before['benchmark'],
                  deterministic=not before['deterministic'])
    assert flags() == before


@pytest.mark.parametrize('options, promise', [
    ({'deterministic': True, 'cudnn_benchmark': False}, 'resume is exact, bit for bit'),
    ({'deterministic': False, 'cudnn_benchmark': False}, 'up to the order of sums, since precision.deterministic=false lets'),
    ({'deterministic': False, 'cudnn_benchmark': True}, 'up to the order of sums, since precision.cudnn_benchmark=true may'),
])
def test_the_promise_is_told(options, promise):
    assert promise in describe_promise(**options)


def test_a_run_sets_what_its_configuration_says_and_tells_its_promise_on_gpus_alone(shards, tmp_path, capsys, monkeypatch):
    dist.init('cpu')
    asked = []
    monkeypatch.setattr(start, 'set_precision', lambda kind, **options: asked.append((kind, options)))
    config = tiny_config(shards, tmp_path, precision={'tf32': True, 'cudnn_benchmark': True, 'deterministic': False})
    start.prepare(config)
    assert asked == [('cpu', {'tf32': True, 'cudnn_benchmark': True, 'deterministic': False})]
    assert 'resume is exact' not in capsys.readouterr().out
