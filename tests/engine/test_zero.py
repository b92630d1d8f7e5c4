"""DeepSpeed's ZeRO: gradients of one process, steps of data-parallel Adam, and runs that go on under other strategies."""

import contextlib
import importlib.util
import io
import os
import shutil

import pytest
from families_for_tests import config_of
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from runs_for_tests import differing, game_of, largest_difference, on_ranks, read_checkpoint, tiny_config, train_here
from test_sharding import FSDP, MID_FADE, SELDOM

from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.zero import MOMENTS
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints

ZERO = {'strategy': 'zero'}
CASES = {'stylegan2': 0, 'biggan': 0, 'pggan': MID_FADE}     # images shown
PHASES = {'D_main', 'D_reg', 'G_main', 'G_reg'}


@pytest.fixture(autouse=True)
def one_process():
    dist.init('cpu')


def each(work, arguments):
    """Do all the work in one process, as importing DeepSpeed takes longer than a case."""
    return [work(*entry) for entry in arguments]


def test_gradients_equal_those_of_one_process(wide_shards, tmp_path):
    def configs(world, **changes):
        return [(config_of(name, wide_shards, tmp_path, world, **changes), nimg) for name, nimg in CASES.items()]
    alone = each(gradients_of_each_phase, configs(1))
    assert alone[0].keys() == PHASES
    for found in on_ranks(2, each, gradients_of_each_phase, configs(2, parallel=ZERO)):
        for name, mine, theirs in zip(CASES, alone, found):
            assert_same_gradients(theirs, mine, name)


def test_steps_are_those_of_data_parallel_adam_and_resume_bitwise(wide_shards, tmp_path):
    """The cases are clipped weights, learning rates and beta on ramps, and moments that start anew as networks grow."""
    def run(name, folder, kimg, parallel=ZERO):
        return config_of(name, wide_shards, tmp_path / folder, 2, total_kimg=kimg, parallel=parallel, **SELDOM),
    names = 'clipped', 'ramps', 'pggan'
    expected = on_ranks(2, each, train_here, [run(name, f'{name}-data', 0.096, {}) for name in names])[0]
    *found, straight, _, resumed = on_ranks(2, each, train_here, [
        *[run(name, name, 0.096) for name in names],
        run('biggan', 'straight', 0.048), run('biggan', 'halves', 0.024), run('biggan', 'halves', 0.048)])[0]
    for name, data_parallel, zero in zip(names, expected, found, strict=True):
        assert largest_difference(data_parallel, zero) < 1e-3, name
    assert not differing(straight, resumed)


def test_a_run_goes_on_under_other_strategies(shards, tmp_path):
    """A run on 2 ranks data-parallel, 2 of FSDP, 3 of ZeRO and one process equals one on one process."""
    sizes = {'batch': 24, 'micro_batch': 2, 'seed': 1, **SELDOM}

    def go_on(world, folder, kimg, **parallel):
        config = tiny_config(shards, tmp_path / folder, total_kimg=kimg, parallel=parallel, **sizes)
        return on_ranks(world, train_here, config)[0]

    def newest():
        return read_checkpoint(list_checkpoints(tmp_path / 'moved' / 'checkpoints')[-1])
    go_on(2, 'moved', 0.048)
    start = newest()
    shutil.copytree(tmp_path / 'moved', tmp_path / 'stayed')
    stayed = go_on(1, 'stayed', 0.288)
    go_on(2, 'moved', 0.096, **FSDP)
    of_fsdp = newest()
    end = go_on(3, 'moved', 0.240, **ZERO)
    of_zero = newest()
    assert not differing(of_zero, end)
    assert of_zero.keys() == of_fsdp.keys() and all(of_zero[name].shape == of_fsdp[name].shape for name in of_fsdp)
    moved = go_on(1, 'moved', 0.288)
    assert largest_difference(start, moved) > 1e-3, 'nothing was learned in ten steps'
    difference = largest_difference(stayed, moved)
    print(f'largest relative difference after 10 steps {difference:.1e}')
    assert difference < 1e-3


def start_engines(config, folder):
    """Start the engines. Returns the bytes of all moments and of those on this rank, and what was printed.

    `folder` is where DeepSpeed would compile.
    """
    os.environ['TORCH_EXTENSIONS_DIR'] = str(folder)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        adams = game_of(config, make_strategy(config.parallel)).state.optimizers.values()
    whole = sum(entry[key].nbytes for adam in adams for entry in adam.moments().values() for key in MOMENTS)
    own = sum(entry[key].untyped_storage().nbytes() for adam in adams for entry in adam.state.values() for key in MOMENTS)
    return whole, own, output.getvalue()


def test_moments_are_in_parts_and_nothing_is_said_or_compiled(wide_shards, tmp_path):
    config = config_of('stylegan2', wide_shards, tmp_path, parallel=ZERO)
    for whole, own, output in on_ranks(2, start_engines, config, tmp_path / 'extensions'):
        assert own < 1.1 * whole / 2
        assert output == ''
    assert not (tmp_path / 'extensions').exists()


def test_a_missing_deepspeed_is_told_before_any_work(shards, tmp_path, monkeypatch):
    from imago.trainer.start import prepare
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'needs the package deepspeed.*pip install .deepspeed'):
        prepare(tiny_config(shards, tmp_path / 'run', parallel=ZERO))
    assert not (tmp_path / 'run').exists()
