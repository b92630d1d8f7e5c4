"""The same command goes on where the run stopped, bit for bit."""

import json
import shutil

import pytest
from runs_for_tests import (
    differing,
    largest_difference,
    on_ranks,
    read_checkpoint,
    tiny_config,
    train_here,
)

from trainer import dist
from trainer.checkpoint import list_checkpoints

LONG, SHORT = 0.096, 0.048   # kimg


@pytest.fixture(autouse=True)
def one_process():
    dist.init('cpu')


def straight_and_resumed(data, folder, world):
    straight = train_here(tiny_config(data, folder / f'straight{world}', total_kimg=LONG))
    train_here(tiny_config(data, folder / f'halves{world}', total_kimg=SHORT))
    return straight, train_here(tiny_config(data, folder / f'halves{world}', total_kimg=LONG))


@pytest.mark.parametrize('world', [1, 2])
def test_n_plus_n_equals_2n_bitwise(shards, tmp_path, world):
    results = on_ranks(world, straight_and_resumed, shards, tmp_path, world) if world > 1 else \
        [straight_and_resumed(shards, tmp_path, 1)]
    for straight, resumed in results:
        assert {'G.synthesis.b16.conv1.weight', 'G_ema.mapping.w_avg', 'opt_D.b16.conv0.weight.exp_avg', 'scalars.path_length_mean'} <= set(straight)
        assert straight['nimg'] == 96 and straight['scalars.path_length_mean'] > 0
        assert not differing(straight, resumed)
        assert not differing(straight, results[0][0])


def test_resuming_on_another_number_of_ranks(shards, tmp_path):
    """From 2 ranks to 1, 2, 3 and 4, ten steps on: equal up to the rounding of sums, on the same pictures."""
    # 12 micro-batches: whole on 1 to 4 ranks. With seed 0, rounding moves a value to the other side of a kink: 2e-3
    sizes = {'batch': 24, 'micro_batch': 2, 'seed': 1}
    on_ranks(2, train_here, tiny_config(shards, tmp_path / 'start', total_kimg=0.048, **sizes))
    start = read_checkpoint(list_checkpoints(tmp_path / 'start' / 'checkpoints')[-1])
    ends = {}
    for world in (1, 2, 3, 4):
        shutil.copytree(tmp_path / 'start', tmp_path / f'on{world}')
        config = tiny_config(shards, tmp_path / f'on{world}', total_kimg=0.288, **sizes)
        ends[world] = on_ranks(world, train_here, config)[0]
    assert largest_difference(start, ends[2]) > 1e-3, 'nothing was learned in ten steps'
    for world in (1, 3, 4):
        difference = largest_difference(ends[2], ends[world])
        print(f'2 -> {world} ranks: largest relative difference after 10 steps {difference:.1e}')
        assert difference < 1e-3
    assert keys_by_step(tmp_path / 'on4') == keys_by_step(tmp_path / 'on1')


def keys_by_step(folder):
    """{nimg: sorted sample keys of the global batch}; the last record of a step counts."""
    steps = {}
    for path in sorted(folder.glob('keys-rank*.jsonl')):
        own = {line['nimg']: line['keys'] for line in map(json.loads, path.read_text().splitlines())}
        for nimg, keys in own.items():
            steps.setdefault(nimg, []).extend(keys)
    return {nimg: sorted(keys) for nimg, keys in steps.items()}
