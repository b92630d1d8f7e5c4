"""Every family and variant: resumed bit for bit, and the same gradients on two ranks as in one process."""

import json
import math

import pytest
import torch
from families_for_tests import FAMILIES, VARIANTS, config_of
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from runs_for_tests import differing, game_of, largest_difference, on_ranks, train_here

from imago.trainer.ranks import dist
from imago.trainer.runs.export import load_generator
from imago.trainer.tools.sample import main as sample

ALL = [*FAMILIES, *VARIANTS]


@pytest.fixture(autouse=True)
def one_process():
    dist.init('cpu')


@pytest.mark.parametrize('name', ALL)
def test_n_plus_n_equals_2n_bitwise(wide_shards, tmp_path, name):
    straight = train_here(config_of(name, wide_shards, tmp_path / 'straight', total_kimg=0.096))
    train_here(config_of(name, wide_shards, tmp_path / 'halves', total_kimg=0.048))
    resumed = train_here(config_of(name, wide_shards, tmp_path / 'halves', total_kimg=0.096))
    assert straight['nimg'] == 96
    assert not differing(straight, resumed)
    assert all(tensor.isfinite().all() for tensor in straight.values())
    G = load_generator(tmp_path / 'halves')
    images = G(torch.randn(2, G.z_dim), torch.zeros(2, G.c_dim))
    assert len(images) == 2 and images.isfinite().all()


@pytest.mark.parametrize('name', ALL)
def test_gradients_equal_those_of_one_process(wide_shards, tmp_path, name):
    alone = gradients_of_each_phase(config_of(name, wide_shards, tmp_path))
    for found in on_ranks(2, gradients_of_each_phase, config_of(name, wide_shards, tmp_path, 2)):
        assert_same_gradients(found, alone)


def test_a_fade_goes_on_elsewhere(wide_shards, tmp_path):
    """Stopped in the middle of a fade on two ranks, resumed on one."""
    at_stop = on_ranks(2, train_here, config_of('pggan', wide_shards, tmp_path / 'run', total_kimg=0.048))[0]
    assert at_stop['G.lod'] == at_stop['D.lod'] and 0 < at_stop['G.lod'] % 1
    together = on_ranks(2, train_here, config_of('pggan', wide_shards, tmp_path / 'whole', total_kimg=0.096))[0]
    alone = train_here(config_of('pggan', wide_shards, tmp_path / 'run', total_kimg=0.096))
    assert largest_difference(together, alone) < 1e-3


def reports(folder):
    return [json.loads(line) for line in (folder / 'stats.jsonl').read_text().splitlines()]


def test_what_adapts_has_moved(wide_shards, tmp_path):
    """Augmentation's p, BEGAN's k and LeCam's means have moved, in the state and in the reports."""
    for name, scalar, key in (('ada', 'augment_p', 'augment/p'), ('began', 'began_k', 'began/k'), ('auxiliary', 'lecam_fake', None)):
        end = train_here(config_of(name, wide_shards, tmp_path / name, total_kimg=0.096))
        assert end[f'scalars.{scalar}'] != 0
        if key:
            assert math.isfinite(reports(tmp_path / name)[-1][key])


def test_lecam_compares_with_the_means_so_far(wide_shards, tmp_path):
    config = config_of('auxiliary', wide_shards, tmp_path, total_kimg=0.096)
    end, told = train_here(config), reports(tmp_path)
    for name in 'real', 'fake':
        weights = [0.99 ** (7 - step) for step in range(8)]
        mean = sum(weight * report[f'logits/{name}'] for weight, report in zip(weights, told, strict=True)) / sum(weights)
        assert (end[f'scalars.lecam_{name}'] / (1 - 0.99 ** 8)).item() == pytest.approx(mean, rel=1e-3)
    assert told[0]['penalty/lecam'] == 0 < told[-1]['penalty/lecam']
    game = game_of(config)
    game.state.step = 8
    game.state.memory |= {name: end[f'scalars.{name}'] for name in ('lecam_real', 'lecam_fake')}
    real, fake = torch.tensor([[5.0], [-9.0]]), torch.tensor([[9.0], [-6.0]])
    means = [game.state.memory[name] / (1 - 0.99 ** 8) for name in ('lecam_real', 'lecam_fake')]
    expected = ((5 - means[1]) ** 2 + (means[0] + 6) ** 2) / 2
    torch.testing.assert_close(game.lecam_distance(real, fake), expected)


def test_clipped_weights_stay_clipped(wide_shards, tmp_path):
    end = train_here(config_of('clipped', wide_shards, tmp_path))
    assert all(tensor.abs().max() <= 0.01 for name, tensor in end.items() if name.startswith('D.'))
    assert any(tensor.abs().max() > 0.01 for name, tensor in end.items() if name.startswith('G.'))


def test_two_steps_of_d_for_one_of_g(wide_shards, tmp_path):
    end = train_here(config_of('biggan', wide_shards, tmp_path))
    steps = {name.split('.')[0]: int(tensor) for name, tensor in end.items() if name.endswith('.step')}
    assert steps == {'opt_D': 4, 'opt_G': 2}


def test_sampling_without_styles(wide_shards, tmp_path, capsys):
    """BigGAN's ways: truncated latents, standing statistics, and the collapse monitor in the reports."""
    config = config_of('biggan', wide_shards, tmp_path / 'run', log={'interval_kimg': 0.024, 'singular_values': True})
    train_here(config)
    last = reports(tmp_path / 'run')[-1]
    first, second, third = (last[f'singular_values/G.blocks.0.0.conv1/{rank}'] for rank in range(3))
    assert first >= second >= third > 0
    pictures = []
    for options in ([], ['--truncation', '0.1'], ['--standing-batches', '2']):
        out = tmp_path / str(len(pictures))
        assert sample([str(tmp_path / 'run'), '--seeds', '0-3', '--grid', '--out', str(out), *options]) == 0
        pictures.append(next(out.iterdir()).read_bytes())
    assert len(set(pictures)) == 3
    for option, value, fix in ('--psi', '0.5', 'use truncation'), ('--truncation', '0', 'at least 0.01'):
        assert sample([str(tmp_path / 'run'), option, value]) == 2
        assert fix in capsys.readouterr().err
