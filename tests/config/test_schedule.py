"""What is a function of the images shown: stages of growth, ramps, rates; and when the optimizers restart."""

import math
from pathlib import Path

import pytest
import torch
from runs_for_tests import game_of, tiny_config

from imago.trainer.config.load import EMAConfig, OptimConfig, load_config
from imago.trainer.config.schedule import at, check_growth, stage_at
from imago.trainer.config.sections import Ramp
from imago.trainer.engine.ema import ema_decay
from imago.trainer.engine.optim import Adam, set_rates
from imago.trainer.games import make_game
from imago.trainer.runs.run_folder import refuse_changes
from imago.trainer.start import prepare
from imago.trainer.train import train

NARROW = {'name': 'pggan', 'z_dim': 8, 'channel_base': 128, 'channel_max': 4}
# 8 px to image 24, fading to 16 px by 72, 16 px to 96, fading to 32 px by 144
GROWTH = {'start_resolution': 8, 'stage_kimg': 0.024, 'fade_kimg': 0.048}


def growing(data=Path('d'), run_dir=Path('r'), growth=GROWTH, **changes):
    return tiny_config(data, run_dir, **({'network': NARROW, 'regularizers': {}, 'growth': growth} | changes))


def test_a_whole_growth():
    config = growing()
    stages = [stage_at(config, (32, 32), nimg) for nimg in range(200)]
    lods = [stage.lod for stage in stages]
    assert lods[0] == 2 and lods[144:] == [0] * 56
    falls = [before - after for before, after in zip(lods, lods[1:])]
    assert min(falls) >= 0 and max(falls) == pytest.approx(1 / 48), 'a jump'
    # each size is whole for a stage, and half faded in at the middle of its fade
    assert set(lods[:25]) == {2} and lods[48] == 1.5 and set(lods[72:97]) == {1} and lods[120] == 0.5
    doubled = [nimg for nimg in range(1, 200) if stages[nimg].side != stages[nimg - 1].side]
    assert doubled == [25, 97], 'the first images of the fades'
    assert [stages[nimg].side for nimg in (24, 25, 96, 97, 199)] == [8, 16, 16, 32, 32]


def test_stages_without_growth():
    config = tiny_config(Path('d'), Path('r'), optim={'g_lr': {'start': 0.2, 'end': 0.1, 'kimg': 1}, 'd_lr': 0.3})
    stage = stage_at(config, (48, 32), 500)
    assert (stage.lod, stage.side, stage.batch, stage.micro_batch, stage.d_lr) == (0, 32, 12, 3, 0.3)
    assert stage.g_lr == pytest.approx(0.15)


def test_sizes_and_rates_of_a_stage_and_what_is_missing_from_the_maps():
    maps = {'batch': {8: 24}, 'micro_batch': {8: 6, 16: 4}, 'g_lr': {16: 0.5}, 'd_lr': {8: 0.25, 32: 0.75}}
    config = growing(growth=GROWTH | maps, optim={'g_lr': 0.1, 'd_lr': {'start': 0.2, 'end': 0.1, 'kimg': 0.001}})
    found = [stage_at(config, (48, 32), nimg) for nimg in (0, 48, 200)]
    assert [(stage.side, stage.batch, stage.micro_batch, stage.g_lr, stage.d_lr) for stage in found] == [
        (8, 24, 6, 0.1, 0.25), (16, 12, 4, 0.5, 0.1), (32, 12, 3, 0.1, 0.75)]


@pytest.mark.parametrize('growth, size, message', [
    ({'start_resolution': 64}, (32, 32), 'growth.start_resolution=64 .* of 32 px; take one of 4, 8, 16, 32'),
    ({'start_resolution': 12}, (48, 32), 'growth.start_resolution=12 .* take one of 4, 8, 16, 32'),
    ({'start_resolution': 4}, (96, 48), 'growth.start_resolution=4 .* take one of 6, 12, 24, 48'),
    ({'batch': {12: 24}}, (32, 32), 'growth.batch.12: .* there are 4, 8, 16, 32'),
    ({'micro_batch': {5: 3}}, (32, 32), 'growth.micro_batch.5'),
    ({'g_lr': {24: 0.1}}, (32, 32), 'growth.g_lr.24'),
    ({'d_lr': {2: 0.1}}, (32, 32), 'growth.d_lr.2'),
])
def test_growth_that_the_pictures_cannot_take(growth, size, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_growth(growing(growth=GROWTH | growth), size)
    assert '\n' not in str(caught.value)


def test_growth_that_fits():
    check_growth(growing(growth=GROWTH | {'batch': {8: 24, 16: 12, 1024: 12}}), (48, 32))
    check_growth(growing(growth=GROWTH | {'start_resolution': 6}), (96, 48))
    check_growth(tiny_config(Path('d'), Path('r')), (32, 32))


def test_published_growth_and_that_of_older_runs():
    assert (growing().growth.penalty_at, growing().growth.restart) == ('stage', 'start')
    for name in 'pggan-1024', 'stylegan1-512', 'stylegan1-1024':
        growth = load_config(name).growth
        assert (growth.penalty_at, growth.restart) == ('full', 'both')


@pytest.mark.parametrize('change', [{'penalty_at': 'full'}, {'restart': 'both'}])
def test_a_run_keeps_the_ways_it_grows(change):
    key, value = f'growth.{next(iter(change))}', next(iter(change.values()))
    with pytest.raises(ValueError, match=f'{key}: .* there, {value} now.*set these back to resume it'):
        refuse_changes(growing(), growing(growth=GROWTH | change), 'r')


def test_ramps_are_half_a_cosine():
    ramp = Ramp(start=3, end=1, kimg=2)
    assert [at(ramp, nimg) for nimg in (0, 2000, 9000)] == [3, 1, 1]
    assert at(ramp, 1000) == pytest.approx(2)
    assert at(ramp, 500) == pytest.approx(2 + math.cos(math.pi / 4))
    assert at(0.5, 10**6) == 0.5


def test_ema_begins_late_and_its_half_life_ramps():
    config = EMAConfig(half_life_kimg=0.064, start_kimg=1)
    assert [ema_decay(nimg, 64, config) for nimg in (0, 999, 1000)] == [0, 0, 0.5]
    ramp = EMAConfig(half_life_kimg=Ramp(start=0, end=0.256, kimg=1))
    assert ema_decay(0, 64, ramp) == 0
    assert ema_decay(500, 64, ramp) == pytest.approx(0.5 ** 0.5)     # half-life 128
    assert ema_decay(1000, 64, ramp) == pytest.approx(0.5 ** 0.25)


@pytest.mark.parametrize('lazy, lr, beta1, beta2', [
    (None, 0.002, 0.25, 0.81),
    (1, 0.001, 0.5, 0.9),                      # c = 1 / 2
    (4, 0.0016, 0.32988, 0.84487),             # c = 4 / 5
    (16, 0.00188235, 0.27125, 0.82011),        # c = 16 / 17
])
def test_rates_are_corrected_for_lazy_steps(lazy, lr, beta1, beta2):
    adam = Adam(torch.nn.Linear(2, 2), OptimConfig())
    set_rates(adam, 0.002, OptimConfig(betas=(0.25, 0.81)), 0, lazy)
    group, = adam.param_groups
    assert (group['lr'], *group['betas']) == pytest.approx((lr, beta1, beta2), rel=1e-4)


def test_the_second_beta_ramps():
    adam = Adam(torch.nn.Linear(2, 2), OptimConfig())
    config = OptimConfig(betas=(0.25, 0.5), beta2_ramp=Ramp(start=0.9, end=0.98, kimg=1))
    set_rates(adam, 0.002, config, 500, None)
    assert adam.param_groups[0]['betas'] == pytest.approx((0.25, 0.94))


def test_lazy_corrections_of_a_game(shards, tmp_path):
    """D's penalty every 16 steps; G's path length every 4, with two steps of D for one of G: every 2 of G's."""
    config = tiny_config(shards, tmp_path, optim={'g_lr': 0.3, 'd_lr': 0.17, 'betas': [0.0, 0.9]}, loss={'d_steps': 2},
                         regularizers={'r1': 1.0, 'd_interval': 16, 'path_length': 2.0, 'g_interval': 4})
    game = game_of(config)
    game.begin_step()
    G, D = (game.state.optimizers[name] for name in 'GD')
    assert D.param_groups[0]['lr'] == pytest.approx(0.16)                    # 16 / 17
    assert G.param_groups[0]['lr'] == pytest.approx(0.2)                     # 2 / 3
    assert G.param_groups[0]['betas'][1] == pytest.approx(0.9 ** (2 / 3))


def restarts(game, until, batch=12):
    """Images shown at each restart; moments are marked before each step."""
    found, state = [], game.state
    while state.nimg < until:
        marks = [entry['exp_avg'].fill_(1) for adam in state.optimizers.values() for entry in adam.state.values()]
        game.begin_step()
        kept = {bool(mark.any()) for mark in marks}
        assert len(kept) == 1, 'of G and of D at once, whole'
        found += [] if kept.pop() else [state.nimg]
        state.advance(batch)
    return found


@pytest.mark.parametrize('when, expected', [('start', [0, 36, 108]), ('both', [0, 36, 72, 108, 144])])
@pytest.mark.parametrize('stop', [12, 24, 36, 48, 72, 84, 96, 108, 120, 144])
def test_optimizers_restart_with_fades_also_when_resumed(wide_shards, tmp_path, stop, when, expected):
    config = growing(wide_shards, tmp_path, GROWTH | {'restart': when})
    first, second = game_of(config), game_of(config)
    found = restarts(first, stop)
    second.state.memory.update(first.state.memory)
    second.state.take(first.state.tree())
    assert found + restarts(second, 200) == expected
    assert second.G.lod == second.D.lod == 0


def test_a_checkpoint_on_the_boundary_restarts_once(wide_shards, tmp_path):
    """Saved at image 36, after the last step of 8 px: the moments in the checkpoint are of 8 px."""
    config = growing(wide_shards, tmp_path / 'run', total_kimg=0.036, checkpoint={'interval_kimg': 0.012})
    train(prepare(config))
    resumed = prepare(growing(wide_shards, tmp_path / 'run', total_kimg=0.048))
    state = resumed.state
    assert state.nimg == 36 and state.memory['side'] == 8
    assert any(entry['exp_avg'].any() for entry in state.optimizers['G'].state.values())
    game = make_game(resumed.config, resumed.plan, state)
    assert restarts(game, 48) == [36] and state.memory['side'] == 16
