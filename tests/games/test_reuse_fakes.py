"""With loss.reuse_fakes, G's phase goes on from the fakes of D's: one forward pass of G less, and the same gradients from them."""

from unittest.mock import patch

import pytest
import torch
from families_for_tests import FAMILIES, VARIANTS, config_of
from four_networks import register
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from runs_for_tests import differing, game_of, on_ranks, tiny_config, train_here

from imago.trainer.config import games
from imago.trainer.data.shards import open_dataset
from imago.trainer.engine import phase as phases
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.phase import run_phase
from imago.trainer.engine.state import make_networks
from imago.trainer.games import GAMES
from imago.trainer.games.latent import Latent
from imago.trainer.models import NETWORKS
from imago.trainer.plan.preflight import phase_activations
from imago.trainer.ranks import dist
from imago.trainer.start import open_stream


@pytest.fixture(autouse=True)
def one_process():
    dist.init('cpu')


def reusing(name, data, folder, world=1, /, reuse=True, **changes):
    """The family's configuration, with one micro-batch a rank."""
    loss = (FAMILIES | VARIANTS)[name].get('loss', {}) | {'d_steps': 1, 'reuse_fakes': reuse}
    return config_of(name, data, folder, world, loss=loss, **changes).changed([f'micro_batch={12 // world}'])


@pytest.mark.parametrize('reuse, passes', [(False, 2), (True, 1)])
@pytest.mark.parametrize('name', ['stylegan2', 'r3gan'])
def test_g_makes_fakes_once_a_step(shards, tmp_path, name, reuse, passes):
    config = reusing(name, shards, tmp_path, reuse=reuse, regularizers={'r1': 1.0, 'd_interval': 2})
    strategy, made = make_strategy(config.parallel), []
    game = game_of(config, strategy)
    batch = next(open_stream(config, open_dataset(config.data.path), game.plan, 0))
    network = game.G.synthesis if game.G.num_ws else game.G
    network.register_forward_hook(lambda *arguments: made.append(1))
    for step in range(1, 3):
        game.begin_step()
        for phase in game.phases():
            run_phase(phase, game.micro_batches(batch, phase), game.state, config.seed, strategy)
        assert len(made) == step * passes and not game.made
        assert not any(p.requires_grad for network in game.state.networks.values() for p in network.parameters())


@pytest.mark.parametrize('name', [*FAMILIES, 'sd-gan', 'mad-gan', 'auxiliary'])
def test_gradients_are_those_from_the_fakes_of_d(wide_shards, tmp_path, name, monkeypatch):
    """Without reuse they are the same once both phases draw the same latents and noise."""
    draw = Latent.draw
    monkeypatch.setattr(Latent, 'draw', lambda game, nimg, purpose: draw(game, nimg, 'D_main'))
    monkeypatch.setattr(phases, 'seed_micro_batch', lambda *purpose: torch.manual_seed(3))
    found, expected = (gradients_of_each_phase(reusing(name, wide_shards, tmp_path, reuse=reuse)) for reuse in (True, False))
    assert_same_gradients(found, expected, name)


def straight_and_resumed(name, data, folder, world):
    def train(where, kimg):
        return train_here(reusing(name, data, folder / f'{where}{world}', world, total_kimg=kimg))
    train('halves', 0.048)
    return train('straight', 0.096), train('halves', 0.096)


@pytest.mark.parametrize('name, world', [('stylegan2', 1), ('ada', 1), ('pggan', 1), ('spectral', 1), ('stylegan2', 2)])
def test_n_plus_n_equals_2n_bitwise(shards, tmp_path, name, world):
    for straight, resumed in on_ranks(world, straight_and_resumed, name, shards, tmp_path, world) if world > 1 else \
            [straight_and_resumed(name, shards, tmp_path, 1)]:
        assert straight['nimg'] == 96 and not differing(straight, resumed)


@pytest.mark.parametrize('name', ['r3gan', 'dcgan'])    # others draw noise or points for each micro-batch, of which 2 ranks have more
def test_two_ranks_have_the_gradients_of_one(wide_shards, tmp_path, name):
    alone = gradients_of_each_phase(reusing(name, wide_shards, tmp_path))
    for strategy in ('data', 'zero'):
        config = reusing(name, wide_shards, tmp_path, 2, parallel={'strategy': strategy})
        for found in on_ranks(2, gradients_of_each_phase, config):
            assert_same_gradients(found, alone, strategy)


def test_memory_counts_what_is_kept_of_g_in_all_phases_until_it_is_used(shards, tmp_path):
    sizes = []
    for reuse in (False, True):
        config = reusing('stylegan2', shards, tmp_path, reuse=reuse)
        plan = game_of(config).plan
        with torch.device('meta'):
            networks = make_networks(plan)
        sizes.append(dict(phase_activations(config, plan, networks)))
    fresh, reused = sizes
    kept = reused['D_main'] - fresh['D_main']
    assert 0 < kept < fresh['G_main'] and reused['D_reg'] == fresh['D_reg'] + kept and reused['G_reg'] == fresh['G_reg']
    assert reused['G_main'] == pytest.approx(fresh['G_main'], rel=0.02)     # there G's graph is always whole


def test_a_game_that_does_not_read_it_refuses_it(shards, tmp_path):
    with patch.dict(GAMES), patch.dict(games.SECTIONS), patch.dict(NETWORKS):
        register()
        with pytest.raises(ValueError, match='loss.reuse_fakes=true with game.name=four_networks.*use loss.reuse_fakes=false'):
            tiny_config(shards, tmp_path, game={'name': 'four_networks'}, loss={'reuse_fakes': True}, regularizers={})


@pytest.mark.parametrize('overrides, world, message', [
    (['micro_batch=6'], 1, 'batch=12 on 1 ranks and micro_batch=6: the fakes of one micro-batch a rank are kept.*use micro_batch=12'),
    (['micro_batch=3'], 2, 'batch=12 on 2 ranks and micro_batch=3.*use micro_batch=6, or loss.reuse_fakes=false'),
    (['micro_batch=12', 'growth.batch={8: 24}', 'growth.fade_kimg=1'], 1, 'growth.batch.8=24 on 1 ranks.*use micro_batch=24'),
])
def test_several_micro_batches_are_refused(shards, tmp_path, overrides, world, message):
    config = reusing('pggan', shards, tmp_path)
    with pytest.raises(ValueError, match=message):
        config.changed(overrides).check_world(world)
    config.changed([*overrides, 'loss.reuse_fakes=false']).check_world(world)
    config.check_world(1)
