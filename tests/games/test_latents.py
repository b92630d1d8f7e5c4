"""Latents of the published distribution: while training, in grids, in samples, in evaluations and in exports."""

import json

import pytest
import torch
from families_for_tests import config_of
from runs_for_tests import train_here

from imago.trainer.config.load import load_config
from imago.trainer.engine.randomness import Draws, draw
from imago.trainer.games.makers import LatentMaker, Sampling
from imago.trainer.metrics.pictures import Fakes
from imago.trainer.models import began, dcgan
from imago.trainer.ranks import dist
from imago.trainer.runs.description import OLDER
from imago.trainer.runs.export import load_generator, open_maker
from imago.trainer.tools import export, sample

SIZES = {'z_dim': 50, 'num_ws': 0, 'style_mixing': 0.0, 'class_counts': ()}


def test_uniform_latents_fill_the_cube():
    uniform = draw(0, 640, 'G_main', 2000, latents='uniform', **SIZES)
    for z in uniform.z, uniform.z_mix:
        assert -1 <= z.min() < -0.999 and 0.999 < z.max() <= 1
        assert z.mean().abs() < 0.01 and z.square().mean().item() == pytest.approx(1 / 3, rel=0.01)
    assert torch.equal(draw(0, 640, 'G_main', 2000, **SIZES).z, draw(0, 640, 'G_main', 2000, latents='normal', **SIZES).z)


@pytest.mark.parametrize('name, family', [('dcgan', dcgan), ('began', began), ('mad-gan', dcgan)])
def test_a_generator_sees_nothing_else(wide_shards, tmp_path, monkeypatch, capsys, name, family):
    """These are all the latents that a run, its samples and its evaluation show to the network."""
    seen, original = [], family.Generator.forward
    monkeypatch.setattr(family.Generator, 'forward', lambda self, z, c: seen.append(z) or original(self, z, c))

    def shown():
        z = torch.cat([z.flatten() for z in seen])
        seen.clear()
        return z
    dist.init('cpu')
    config = config_of(name, wide_shards, tmp_path / 'run', guard={'pictures': 16})
    network = config.network.model_copy(update={'latents': 'uniform'})
    train_here(config.model_copy(update={'network': network}))
    assert shown().abs().max() <= 1
    assert export.main([str(tmp_path / 'run'), str(tmp_path / 'export'), '--standing-batches', '2']) == 0
    assert name == 'began' or 0.99 < shown().abs().max() <= 1
    for source in tmp_path / 'run', tmp_path / 'export':
        assert sample.main([str(source), '--out', str(tmp_path / 'out'), '--seeds', '0-31']) == 0
        assert 0.9 < shown().abs().max() <= 1
        maker, _ = open_maker(source)
        assert maker.latents == 'uniform'
        fakes = Fakes(maker, 64, 0)
        assert 0.9 < fakes.draws(range(32)).z.abs().max() <= 1
    capsys.readouterr()
    for option, told in ('--truncation', 'uniform in [-1, 1], without tails'), ('--psi', 'no w to truncate in; leave it out'):
        assert sample.main([str(tmp_path / 'export'), option, '0.5']) == 2 and told in capsys.readouterr().err


def test_exports_from_before_have_normal_latents(wide_shards, tmp_path, capsys):
    dist.init('cpu')
    train_here(config_of('dcgan', wide_shards, tmp_path / 'run'))
    export.main([str(tmp_path / 'run'), str(tmp_path / 'export')])
    path = tmp_path / 'export' / 'generator.json'
    about = {key: value for key, value in json.loads(path.read_text()).items() if key in OLDER}
    assert about['options'].pop('latents') == 'normal'
    path.write_text(json.dumps(about))
    maker, _ = open_maker(tmp_path / 'export')
    assert maker.latents == 'normal'
    maker.check(Sampling(truncation=0.5))
    about['options']['latents'] = 'cauchy'
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="latents: Input should be 'normal' or 'uniform'"):
        load_generator(tmp_path / 'export')


def test_the_published_configuration_says_uniform():
    assert load_config('dcgan-64').network.latents == 'uniform'
    with pytest.raises(ValueError, match='unknown key network.latents: networks of another name have it'):
        load_config('sngan-64', ['network.latents=uniform'])


def test_a_path_between_latents_stays_among_them(monkeypatch):
    """The path is straight in the cube of uniform latents, and along a circle between normal latents."""
    monkeypatch.setattr(LatentMaker, 'run', lambda self, z, inputs: z)
    ends, where = 2 * torch.rand(2, 100, 8) - 1, torch.rand(100, 1)
    labels = torch.zeros(100, dtype=torch.int64)

    def between(latents):
        maker = LatentMaker({'G': dcgan.Generator(8, 0, (8, 8), 3, channels=4, latents=latents)}, ())
        return maker.between(*(Draws(z, z, labels, labels) for z in ends), where, Sampling())
    torch.testing.assert_close(between('uniform'), ends[0] + where * (ends[1] - ends[0]))
    assert between('uniform').abs().max() <= 1
    assert (between('normal').abs() > 1).any()
