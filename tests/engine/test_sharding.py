"""FSDP: the gradients of one process, runs that go on under another strategy, and what a rank holds."""

import shutil

import pytest
import torch
from families_for_tests import FAMILIES, config_of
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from runs_for_tests import (
    differing,
    game_of,
    largest_difference,
    on_ranks,
    read_checkpoint,
    tiny_config,
    train_here,
)
from torch.distributed.tensor import DTensor

from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.state import make_networks
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints
from imago.trainer.runs.export import load_generator

FSDP, HYBRID = {'strategy': 'fsdp'}, {'strategy': 'fsdp', 'replicas': 2}
SELDOM = {'checkpoint': {'interval_kimg': 1.0}, 'log': {'interval_kimg': 1.0, 'grid_kimg': 1.0, 'singular_values': True}}
MID_FADE = 48
CASES = {   # name: (family or variant, images shown, changes)
    'stylegan2': ('stylegan2', 0, {}),
    'a penalty on weights reached from outside': ('stylegan1', 0, {'regularizers': {'orthogonal': 1e-4, 'r1': 1.0}}),
    'biggan': ('biggan', 0, {}),
    'pggan in a fade': ('pggan', MID_FADE, {}),
    'stylegan1 in a fade': ('stylegan1', MID_FADE, {}),
    'spectral norm': ('spectral', 0, {}),
    'r3gan, R1 and R2': ('r3gan', 0, {}),
    'shared parameters': ('mad-gan', 0, {}),
}


@pytest.fixture(autouse=True)
def one_process():
    dist.init('cpu')


def compare_gradients(case, data, folder, world, parallel):
    name, nimg, changes = CASES[case]
    alone = gradients_of_each_phase(config_of(name, data, folder, **changes), nimg)
    spread = config_of(name, data, folder, world, parallel=parallel, **changes)
    for found in on_ranks(world, gradients_of_each_phase, spread, nimg):
        assert_same_gradients(found, alone)


@pytest.mark.parametrize('case', CASES)
def test_gradients_equal_those_of_one_process(wide_shards, tmp_path, case):
    compare_gradients(case, wide_shards, tmp_path, 2, FSDP)


def test_gradients_of_two_replicas_of_two_parts(wide_shards, tmp_path):
    compare_gradients('stylegan2', wide_shards, tmp_path, 4, HYBRID)


@pytest.mark.parametrize('name, straight, second_half, tolerance', [('biggan', FSDP, FSDP, 0.0), ('pggan', {}, FSDP, 1e-3)])
def test_resumed_and_sampled_from(wide_shards, tmp_path, name, straight, second_half, tolerance):
    """Power iteration and batch norm resume bitwise under one strategy; new moments and fades, up to rounding under two."""
    def run(folder, kimg, parallel):
        return on_ranks(2, train_here, config_of(name, wide_shards, tmp_path / folder, 2, total_kimg=kimg, parallel=parallel,
                                                 **SELDOM))
    expected = run('straight', 0.096, straight)
    run('halves', 0.048, straight)
    for end in (ends := run('halves', 0.096, second_half)):
        assert largest_difference(expected[0], end) <= tolerance
        assert not differing(ends[0], end)
    G = load_generator(tmp_path / 'halves')
    assert all(torch.equal(tensor, ends[0][f'G_ema.{key}']) for key, tensor in G.state_dict().items())


def test_a_run_goes_on_under_other_strategies(shards, tmp_path):
    """A run on 4 ranks data-parallel, 2 of FSDP, 4 in two replicas, 3 data-parallel and one process equals one on one process."""
    sizes = {'batch': 24, 'micro_batch': 2, 'seed': 1, **SELDOM}

    def go_on(world, folder, kimg, **parallel):
        config = tiny_config(shards, tmp_path / folder, total_kimg=kimg, parallel=parallel, **sizes)
        return on_ranks(world, train_here, config)[0]
    go_on(4, 'moved', 0.048)
    start = read_checkpoint(list_checkpoints(tmp_path / 'moved' / 'checkpoints')[-1])
    shutil.copytree(tmp_path / 'moved', tmp_path / 'stayed')
    stayed = go_on(1, 'stayed', 0.288)
    go_on(2, 'moved', 0.120, **FSDP)
    go_on(4, 'moved', 0.144, **HYBRID)
    go_on(3, 'moved', 0.240)
    moved = go_on(1, 'moved', 0.288)
    assert largest_difference(start, moved) > 1e-3, 'nothing was learned in ten steps'
    difference = largest_difference(stayed, moved)
    print(f'largest relative difference after 10 steps {difference:.1e}')
    assert difference < 1e-3


def bytes_held(config):
    """Return the bytes of weights, moments and average: all of them, and those on this rank after the networks were whole."""
    strategy = make_strategy(config.parallel)
    state = game_of(config, strategy).state
    moments = [entry[key] for adam in state.optimizers.values() for entry in adam.state.values() for key in ('exp_avg', 'exp_avg_sq')]
    networks = state.networks.values()
    kept = [*(p for network in (*networks, *state.averages.values()) for p in network.parameters()), *moments]
    with strategy.whole(*networks):
        gathered = [p for network in networks for p in network.parameters()]
        assert all(type(p) is torch.nn.Parameter and p.untyped_storage().nbytes() for p in gathered)
    assert not any(p.untyped_storage().nbytes() for p in gathered), 'gathered parameters were not freed'
    own = [tensor.to_local() for tensor in kept if isinstance(tensor, DTensor)]
    assert len(own) == len(kept)
    return sum(tensor.nbytes for tensor in kept), sum(tensor.untyped_storage().nbytes() for tensor in own)


@pytest.mark.parametrize('world, parallel, parts', [(2, FSDP, 2), (4, HYBRID, 2)])
def test_each_rank_holds_its_part(wide_shards, tmp_path, world, parallel, parts):
    for total, own in on_ranks(world, bytes_held, config_of('stylegan2', wide_shards, tmp_path, world, parallel=parallel)):
        assert own < 1.1 * total / parts     # odd sizes are filled up


def test_refusals(shards, tmp_path):
    with pytest.raises(ValueError, match='parallel.replicas=2 with parallel.strategy=data: .*use parallel.strategy=fsdp'):
        tiny_config(shards, tmp_path, parallel={'replicas': 2})
    with pytest.raises(ValueError, match='parallel.replicas=2 does not divide the 3 ranks'):
        tiny_config(shards, tmp_path, parallel=HYBRID).check_world(3)


def test_no_network_has_a_parameter_that_cannot_be_cut(wide_shards, tmp_path):
    for name in FAMILIES:
        config = config_of(name, wide_shards, tmp_path)
        for network in make_networks(config.game.plan(config, open_dataset(wide_shards).manifest)).values():
            assert all(parameter.ndim for parameter in network.parameters()), name
