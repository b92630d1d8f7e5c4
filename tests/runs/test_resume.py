"""The same command goes on where the run stopped, bit for bit."""

import json
import shutil

import pytest
import torch
from families_for_tests import GROWTH, config_of
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from runs_for_tests import (
    differing,
    in_float64,
    largest_difference,
    on_ranks,
    read_checkpoint,
    tiny_config,
    train_here,
)

from imago.trainer.config.schedule import stage_at
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints
from imago.trainer.runs.run_folder import told_of_micro_batches
from imago.trainer.start import prepare

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
    """A run of 2 ranks goes on for ten steps on 1, 2, 3 and 4: with the same pictures, and equal up to the rounding of sums."""
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


def test_another_micro_batch_is_told(shards, tmp_path, capsys):
    """Changing it stays legal, as memory may be short or ranks many; only the batch may not change."""
    def lines(**changes):
        prepare(tiny_config(shards, tmp_path, total_kimg=0.012, **changes))
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith('resumed from')]
    train_here(tiny_config(shards, tmp_path, total_kimg=0.012))
    capsys.readouterr()
    assert lines()[0].endswith(' at 0.012 kimg')
    line, = lines(micro_batch=6)
    assert 'changed: micro_batch: 3 there, 6 now; with micro-batches of another size the run may take other steps: noise' in line


@pytest.mark.parametrize('micro_batch, now, batch_norm, told', [
    (12, 2, True, 'batch norm takes its statistics over 24 pictures (micro_batch x ranks) from here on, 12 before'),
    (6, 1, True, 'batch norm takes its statistics over 6 pictures'),
    (6, 2, True, 'the run may take other steps'),          # the same statistics of batch norm, but of other pictures
    (12, 2, False, ''), (6, 1, False, 'the run may take other steps'), (12, 1, True, ''),   # no batch norm, no change
])
def test_what_micro_batches_change(micro_batch, now, batch_norm, told):
    before, after = (tiny_config('d', 'r', batch=24, micro_batch=size) for size in (12, micro_batch))
    found = told_of_micro_batches(before, after, (1, now), batch_norm)
    assert told in found and bool(told) == bool(found)


STAGES = {0: 2, 48: 1.5, 72: 1, 120: 0.5, 144: 0}     # images shown: level of detail


def gradients_of_each_stage(config):
    """[(level of detail, gradients of each phase)]"""
    return [(float(stage_at(config, (16, 16), nimg).lod), gradients_of_each_phase(config, nimg)) for nimg in STAGES]


@pytest.mark.parametrize('name', ['pggan', 'stylegan1'])
def test_gradients_of_every_stage_and_fade_are_those_of_one_process(wide_shards, tmp_path, name):
    alone = gradients_of_each_stage(config_of(name, wide_shards, tmp_path))
    assert [lod for lod, _ in alone] == list(STAGES.values())
    for found in on_ranks(2, gradients_of_each_stage, config_of(name, wide_shards, tmp_path, 2)):
        for (lod, mine), (_, theirs) in zip(alone, found, strict=True):
            assert_same_gradients(theirs, mine, lod)


def train_in_float64(config):
    with in_float64():
        return train_here(config)


# In StyleGAN's first layer AdaIN removes what a bias adds: its gradient is 0, and what Adam makes of that is rounding.
NO_GRADIENT = 'synthesis.layers.0.bias'


def test_growing_on_changing_numbers_of_ranks_differs_by_rounding_alone(wide_shards, tmp_path):
    """A run goes from 1 rank to 2 and back to 1, in fades and where Adam restarts. In float64 the difference nearly vanishes."""
    def go_on(world, folder, kimg):
        growth = GROWTH | {'penalty_at': 'full', 'restart': 'both'}
        config = config_of('stylegan1', wide_shards, tmp_path / folder, world, total_kimg=kimg, growth=growth)
        return on_ranks(world, train_in_float64, config)[0]
    stayed = go_on(1, 'stayed', 0.192)
    for world, kimg in (1, 0.036), (2, 0.120), (1, 0.192):
        moved = go_on(world, 'moved', kimg)
    idle = {key for key in stayed if NO_GRADIENT in key}
    assert all(stayed[key].abs().max() < 1e-5 for key in idle if not key.endswith('step'))
    learned, theirs = ({key: tensor for key, tensor in end.items() if key not in idle} for end in (stayed, moved))
    assert learned['G.synthesis.torgb.2.weight'].dtype == torch.float64
    difference = largest_difference(learned, theirs)
    print(f'largest relative difference after 16 steps in float64 {difference:.1e}')
    assert difference < 1e-8


def keys_by_step(folder):
    """{nimg: sorted sample keys of the global batch}; the last record of a step counts."""
    steps = {}
    for path in sorted(folder.glob('keys-rank*.jsonl')):
        own = {line['nimg']: line['keys'] for line in map(json.loads, path.read_text().splitlines())}
        for nimg, keys in own.items():
            steps.setdefault(nimg, []).extend(keys)
    return {nimg: sorted(keys) for nimg, keys in steps.items()}
