"""SD-GAN: pairs of pictures with one identity. Donahue et al. 2018."""

import pytest
import torch
from families_for_tests import config_of
from runs_for_tests import tiny_config

from trainer.data.shards import open_dataset
from trainer.engine.parallel import Strategy
from trainer.engine.phase import MicroBatch
from trainer.engine.randomness import draw
from trainer.engine.state import make_state
from trainer.games.recipe import Recipe

SIZES = {'z_dim': 8, 'num_ws': 0, 'style_mixing': 0.0, 'class_counts': ()}


def test_a_pair_shares_the_identity_and_nothing_else():
    draws, free = (draw(1, 640, 'G_main', 64, identity_dim=dim, **SIZES) for dim in (3, 0))
    pairs = draws.z.unflatten(0, (-1, 2))     # [pairs, 2, z_dim]
    assert torch.equal(pairs[:, 0, :3], pairs[:, 1, :3])
    assert (pairs[:, 0, 3:] != pairs[:, 1, 3:]).all()
    assert len(pairs[:, 0, :3].unique(dim=0)) == 32, 'pairs share one identity'
    assert torch.equal(draws.z[::2], free.z[::2]) and torch.equal(draws.z[1::2, 3:], free.z[1::2, 3:])


def recipe_of(config):
    manifest = open_dataset(config.data.path).manifest
    return Recipe(config, manifest, make_state(config, manifest, torch.device('cpu'), Strategy()))


def test_the_discriminator_sees_a_pair_as_one_picture_of_twice_the_channels(wide_shards, tmp_path):
    recipe = recipe_of(config_of('sd-gan', wide_shards, tmp_path))
    state, images = recipe.state, torch.randn(6, 3, 16, 16)
    assert [module for module in state.D.modules() if isinstance(module, torch.nn.Conv2d)][0].in_channels == 6
    assert state.G(torch.randn(4, 8), torch.zeros(4, 0)).shape == (4, 3, 16, 16)
    seen = []
    outputs = recipe.judge(lambda x, c: seen.append(x) or x.mean(dim=(1, 2, 3))[:, None], images, torch.zeros(6, 0))
    assert outputs.shape == (3, 1) and seen[0].shape == (3, 6, 16, 16)
    for i in range(3):
        assert torch.equal(seen[0][i], torch.cat([images[2 * i], images[2 * i + 1]]))


@pytest.mark.parametrize('penalty, expected', [('r1', 12 * 9 / 2), ('dragan', (108 ** 0.5 - 1) ** 2)])
def test_a_penalty_counts_the_gradient_of_a_pair(wide_shards, tmp_path, penalty, expected):
    """D's gradient is 3 at 12 of a pair's values, of both pictures: |gradient|^2 is 12 * 9."""
    network = {'name': 'r3gan', 'z_dim': 8, 'identity_dim': 4, 'channel_base': 128, 'channel_max': 16, 'group_size': 4}
    data = {'path': str(wide_shards), 'lanes': 6, 'workers': 0, 'pairs': True}
    recipe = recipe_of(tiny_config(wide_shards, tmp_path, network=network, data=data, micro_batch=4,
                                   regularizers={penalty: 1.0}))
    recipe.state.D = torch.nn.Module()
    recipe.state.D.forward = lambda images, labels: 3 * images[:, :, 0, :2].sum(dim=(1, 2))[:, None]
    micro = MicroBatch(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, 0), None, torch.zeros(4, 0))
    cost, _ = recipe.gradient_penalties(micro, recipe.reals(micro), None)
    assert cost.item() == pytest.approx(expected, rel=1e-5)
