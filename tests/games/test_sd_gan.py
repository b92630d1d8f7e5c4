"""SD-GAN: pairs of pictures with one identity. Donahue et al. 2018."""

import pytest
import torch
from families_for_tests import config_of
from runs_for_tests import game_of, tiny_config

from imago.trainer.games.latent import Latent, MicroBatch


@pytest.mark.parametrize('latents', ['normal', 'uniform'])
def test_a_pair_shares_the_identity_and_nothing_else(wide_shards, tmp_path, latents):
    network = {'name': 'dcgan', 'z_dim': 8, 'channels': 4, 'latents': latents}
    game = game_of(tiny_config(wide_shards, tmp_path, network=network, regularizers={},
                               game={'name': 'sd_gan', 'identity_dim': 3},
                               data={'path': str(wide_shards), 'lanes': 32, 'workers': 0}, batch=64, micro_batch=4))
    draws, free = game.draw(640, 'G_main'), Latent.draw(game, 640, 'G_main')
    pairs = draws.z.unflatten(0, (-1, 2))     # [pairs, 2, z_dim]
    assert torch.equal(pairs[:, 0, :3], pairs[:, 1, :3])
    assert (pairs[:, 0, 3:] != pairs[:, 1, 3:]).all()
    assert len(pairs[:, 0, :3].unique(dim=0)) == 32, 'pairs share one identity'
    assert torch.equal(draws.z[::2], free.z[::2]) and torch.equal(draws.z[1::2, 3:], free.z[1::2, 3:])


def test_the_discriminator_sees_a_pair_as_one_picture_of_twice_the_channels(wide_shards, tmp_path):
    game, images = game_of(config_of('sd-gan', wide_shards, tmp_path)), torch.randn(6, 3, 16, 16)
    assert [module for module in game.D.modules() if isinstance(module, torch.nn.Conv2d)][0].in_channels == 6
    assert game.G(torch.randn(4, 8), torch.zeros(4, 0)).shape == (4, 3, 16, 16)
    seen = []
    outputs = game.outputs(lambda x, c: seen.append(x) or x.mean(dim=(1, 2, 3))[:, None], images, torch.zeros(6, 0))
    assert outputs.shape == (3, 1) and seen[0].shape == (3, 6, 16, 16)
    for i in range(3):
        assert torch.equal(seen[0][i], torch.cat([images[2 * i], images[2 * i + 1]]))


@pytest.mark.parametrize('penalty, expected', [('r1', 12 * 9 / 2), ('dragan', (108 ** 0.5 - 1) ** 2)])
def test_a_penalty_counts_the_gradient_of_a_pair(wide_shards, tmp_path, penalty, expected):
    """D's gradient is 3 at 12 of a pair's values, of both pictures: |gradient|^2 is 12 * 9."""
    network = {'name': 'r3gan', 'z_dim': 8, 'channel_base': 128, 'channel_max': 16, 'group_size': 4}
    data = {'path': str(wide_shards), 'lanes': 6, 'workers': 0}
    game = game_of(tiny_config(wide_shards, tmp_path, network=network, data=data, micro_batch=4,
                               game={'name': 'sd_gan', 'identity_dim': 4}, regularizers={penalty: 1.0}))
    D = game.state.networks['D'] = torch.nn.Module()
    D.forward = lambda images, labels: 3 * images[:, :, 0, :2].sum(dim=(1, 2))[:, None]
    micro = MicroBatch(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, 0), None, torch.zeros(4, 0))
    cost, _ = game.gradient_penalties(micro, game.reals(micro), None)
    assert cost.item() == pytest.approx(expected, rel=1e-5)
