"""The examples of docs/write-a-game.md and docs/write-a-network.md do what the pages say."""

import re
import types
from pathlib import Path

import pytest
import torch
import yaml
from runs_for_tests import tiny_config, train_here

from imago.trainer.config.networks import OF_D, OF_G, NetworkSection, discriminator_options, generator_options
from imago.trainer.games import GAMES
from imago.trainer.games.latent import Latent
from imago.trainer.objectives.regularizers import gradient_norm_squared
from imago.trainer.ranks import dist

DOCS = Path(__file__).parents[1] / 'docs'


def blocks(page, language):
    return re.findall(rf'```{language}\n(.*?)```', (DOCS / page).read_text(), flags=re.DOTALL)


def run_block(page, number):
    module = types.ModuleType(f'example_{number}')
    exec(compile(blocks(page, 'python')[number], page, 'exec'), module.__dict__)
    return module


def test_a_game_trains_and_d_sees_what_it_says(shards, tmp_path, monkeypatch):
    dist.init('cpu')
    game = run_block('write-a-game.md', 0).InstanceNoise
    told, = blocks('write-a-game.md', 'yaml')
    noise = yaml.safe_load(told)['game']
    seen = []
    monkeypatch.setattr(Latent, 'augmented', lambda self, images: seen.append(images) or images)
    monkeypatch.setattr(game, 'outputs', lambda self, D, images, labels: (
        seen.append(self.augmented(images) - seen[-1]) or D(images, labels)))
    end = train_here(tiny_config(shards, tmp_path / 'run', game=noise, total_kimg=0.012))
    assert end['nimg'] == 12 and GAMES['instance_noise'] is game
    spread = [difference.std().item() for difference in seen if difference.std() < 0.5][-1]
    assert spread == pytest.approx(noise['sigma']['start'], rel=0.2)


@pytest.mark.parametrize('classes', [0, 3])
def test_a_network_fulfils_the_contract(classes):
    module, section = run_block('write-a-network.md', 0), run_block('write-a-network.md', 1).Plain
    options = section(name='plain', channels=8)
    assert isinstance(options, NetworkSection) and not section.styles
    of_both = {'resolution': (16, 24), 'img_channels': 3, 'c_dim': classes}
    G = module.Generator(**generator_options(options) | of_both)
    D = module.Discriminator(**discriminator_options(options) | of_both | {'num_outputs': 1})
    assert OF_G & generator_options(options).keys() == {'z_dim'} and not OF_D & generator_options(options).keys()
    z, c = torch.randn(4, G.z_dim), torch.eye(4)[:, :classes]
    images = G(z, c)
    assert images.shape == (4, 3, 16, 24) and images.dtype == torch.float32 and images.abs().max() <= 1
    images = images.detach().requires_grad_()
    logits = D(images, c)
    assert logits.shape == (4, 1)
    gradient_norm_squared(logits, images).sum().backward()
    assert D.fromrgb.weight.grad.abs().sum() > 0
