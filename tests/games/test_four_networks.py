"""A game that was added from outside, with four networks: the loop, the strategies and every tool take it as their own."""

import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from four_networks import FOUR, FourNetworks, register
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from PIL import Image
from runs_for_tests import differing, on_ranks, tiny_config, train_here
from safetensors.torch import load_file
from shards_for_tests import write_dataset

from imago.trainer.config import games
from imago.trainer.config.load import is_fixed
from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.state import make_networks
from imago.trainer.games import GAMES, add_game
from imago.trainer.metrics.pictures import Fakes, ShardPictures
from imago.trainer.metrics.protocol import check_evaluation
from imago.trainer.models import NETWORKS, num_parameters
from imago.trainer.plan.cost import cost
from imago.trainer.plan.preflight import describe_needs, phase_activations, rank_bytes
from imago.trainer.plan.work import count_work
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints
from imago.trainer.runs.export import load_generator, open_maker
from imago.trainer.tools import export, sample
from imago.trainer.tools.cost import machine_of, parser

STRATEGIES = ('data', 'fsdp', 'zero')
GAME = {'name': 'four_networks', 'width': 3}


@pytest.fixture(autouse=True)
def registered():
    with patch.dict(GAMES), patch.dict(games.SECTIONS), patch.dict(NETWORKS):
        register()
        dist.init('cpu')
        yield


def config_of(shards, folder, strategy='data', /, **changes):
    seldom = {'checkpoint': {'interval_kimg': 1.0}, 'log': {'interval_kimg': 1.0, 'grid_kimg': 1.0}}
    return tiny_config(shards, folder, game=GAME, regularizers={}, parallel={'strategy': strategy}, **seldom | changes)


def each(work, *arguments):
    """Do all the work in a new process, where the game must be registered first."""
    register()
    return [work(*entry) for entry in arguments]


def test_gradients_of_two_networks_at_once_are_those_of_one_process(shards, tmp_path):
    alone = gradients_of_each_phase(config_of(shards, tmp_path))
    assert set(alone) == {'D_main', 'G_main'}
    configs = [(config_of(shards, tmp_path, strategy),) for strategy in STRATEGIES]
    for found in on_ranks(2, each, gradients_of_each_phase, *configs):
        for strategy, gradients in zip(STRATEGIES, found, strict=True):
            assert_same_gradients(gradients, alone, strategy, limit=1e-6)


def test_resumed_bitwise(shards, tmp_path):
    """2 + 2 = 4 steps, on 2 ranks; what all four networks learn is the same under each strategy, up to rounding."""
    def run(strategy, folder, kimg):
        return config_of(shards, tmp_path / f'{strategy}-{folder}', strategy, total_kimg=kimg),
    work = [run(strategy, *part) for strategy in ('data', 'fsdp')
            for part in (('straight', 0.048), ('halves', 0.024), ('halves', 0.048))]
    for straight, half, resumed, *sharded in on_ranks(2, each, train_here, *work):
        assert not differing(straight, resumed) and not differing(sharded[0], sharded[2])
        assert straight['nimg'] == 48 and half['nimg'] == 24 and straight['scalars.cycle_mean'] > 0
        moved = {key.partition('.')[0] for key in differing(straight, half)}
        assert {*FOUR, 'G_ab_ema', 'G_ba_ema', *(f'opt_{name}' for name in FOUR)} <= moved
        for key in straight:
            assert torch.allclose(straight[key], sharded[0][key], rtol=1e-3, atol=1e-4), key


def test_what_it_will_need_is_told(shards, tmp_path):
    config, manifest = config_of(shards, tmp_path), open_dataset(shards).manifest
    plan = config.game.plan(config, manifest)
    networks = make_networks(plan)
    told = describe_needs(config, manifest, 2, 'cpu')
    assert '   '.join(f'{name} {num_parameters(networks[name]):,}' for name in FOUR) in told
    one, other = (4 * num_parameters(networks[name]) for name in ('G_ab', 'D_a'))
    zero = rank_bytes(config_of(shards, tmp_path, 'zero'), plan, networks, 2)
    assert zero[1] == 2 * max(one, other)      # the gradients of both networks that step together
    sizes = dict(phase_activations(config, plan, networks))
    assert sizes.keys() == {'D_main', 'G_main'} and min(sizes.values()) > 3 * 3 * 16 * 16 * 4
    machine, _ = machine_of(parser().parse_args(['demo']))
    work = count_work(config, manifest, 3)
    assert [phase.trains for phase in work.phases] == [('D_a', 'D_b'), ('G_ab', 'G_ba')]
    assert all(phase.micro and phase.activations for phase in work.phases)
    sent = {strategy: cost(config_of(shards, tmp_path, strategy), work, machine, 1, 2).sent for strategy in STRATEGIES}
    # an all-reduce sends all gradients once; besides, only means and a request to stop are sent
    gradients = 2 * one + 2 * other
    assert gradients < sent['data'] < gradients + 200 and sent['data'] < sent['zero'] < sent['fsdp']


@pytest.fixture
def trained(shards, tmp_path):
    """A run with grids, and with a guard that has held-out pictures and no critic to judge them."""
    held_out = write_dataset(tmp_path / 'held out', (20,), size=16)
    config = config_of(shards, tmp_path / 'run', guard={'start_kimg': 0, 'pictures': 16, 'data': str(held_out)},
                       log={'interval_kimg': 0.012, 'grid_kimg': 0.024, 'grid': [2, 2], 'singular_values': True})
    state = train_here(config)
    return tmp_path / 'run', state


def test_it_is_watched_sampled_and_exported(trained, tmp_path):
    run, state = trained
    report = json.loads((run / 'stats.jsonl').read_text().splitlines()[-1])
    assert 'guard/diversity' in report and 'guard/overfitting' not in report and 'guard/loss_ratio' not in report
    assert any(key.startswith('singular_values/D_b.') for key in report)
    assert len(list((run / 'grids').glob('fakes-*.png'))) == 3   # at the start, at 24 and at 48 images
    out = tmp_path / 'export'
    assert export.main([str(run), str(out)]) == 0
    weights = load_file(out / 'generator.safetensors')
    assert {key.partition('.')[0] for key in weights} == {'G_ab', 'G_ba'}
    assert all(tensor.equal(state[key.replace('.', '_ema.', 1)]) for key, tensor in weights.items())
    pictures = []
    for source in (run, out):
        folder = tmp_path / f'pictures of {source.name}'
        assert sample.main([str(source), '--out', str(folder), '--seeds', '0-2,7']) == 0
        pictures.append(np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]))
    assert pictures[0].shape == (4, 16, 16, 3) and (pictures[0] == pictures[1]).all() and pictures[0].std() > 0
    assert open_maker(out)[1]['networks']['G_ab']['role'] == 'translator'


def test_what_its_maker_cannot_do_is_refused(trained, tmp_path, capsys):
    run, _ = trained
    assert sample.main([str(run), '--out', str(tmp_path / 'no'), '--psi', '0.5']) == 2
    assert 'cannot be truncated' in capsys.readouterr().err
    with pytest.raises(ValueError, match='has no generator G but G_ab, G_ba; take open_maker'):
        load_generator(run)
    maker, reals = open_maker(run)[0], ShardPictures(open_dataset(str(tmp_path / 'held out')), (16, 16), 20, 0)
    options = tiny_config(tmp_path, run, evaluate={'metrics': ['ppl']}).evaluate
    with pytest.raises(ValueError, match='ppl is measured between latents, which these pictures have not'):
        check_evaluation(options, Fakes(maker, 20, 0), reals)


def test_a_forged_or_foreign_export_is_refused(trained, tmp_path):
    run, _ = trained
    newest = list_checkpoints(run / 'checkpoints')[-1] / 'complete.json'
    seal = json.loads(newest.read_text())
    named = seal['generator']['networks']
    for wrong, why in (({'G_ab': named['G_ab']}, 'not those of the game four_networks: G_ab, G_ba'),
                       (named | {'G_ba': named['G_ba'] | {'role': 'critic'}}, 'not those of the game'),
                       (named | {'G_ba': named['G_ba'] | {'model': 'huge'}}, "a known translator, not 'huge'"),
                       (named | {'G_ba': named['G_ba'] | {'options': named['G_ba']['options'] | {'width': 1 << 40}}}, 'width=1099'),
                       (named | {'G_ba': named['G_ba'] | {'options': {}}}, 'cannot be built'),
                       (named | {'G_ba': named['G_ba'] | {'options': named['G_ba']['options'] | {'speed': 1}}}, "no option 'speed'")):
        forged(newest, seal | {'generator': seal['generator'] | {'networks': wrong}})
        with pytest.raises(ValueError, match=why):
            open_maker(newest.parent)
    forged(newest, seal)
    open_maker(newest.parent)
    del GAMES['four_networks']
    with pytest.raises(ValueError, match="there is no game called 'four_networks'; the code that adds it must be imported first"):
        open_maker(newest.parent)


def forged(path, tree):
    """Write a forged file with a checksum that is right."""
    from imago.trainer.data.sealed import CHECKSUM, write_sealed
    write_sealed(path, {key: value for key, value in tree.items() if key != CHECKSUM})


def test_its_name_is_taken_once(shards, tmp_path):
    class Other(games.Latent):
        name: games.Literal['four_networks']  # noqa: F821  # ruff knows typing's Literal alone
    with pytest.raises(ValueError, match='there is a game four_networks already'):
        games.add_section(Other)
    add_game(FourNetworks)
    assert is_fixed('game.name') and not is_fixed('game.width')
    with pytest.raises(ValueError, match='game.name=chess: take one of latent, began, mad_gan, sd_gan, four_networks'):
        tiny_config(shards, tmp_path, game={'name': 'chess'})
    with pytest.raises(ValueError, match='loss.name=hinge with game.name=four_networks, which has a loss of its own'):
        config_of(shards, tmp_path, loss={'name': 'hinge'})
