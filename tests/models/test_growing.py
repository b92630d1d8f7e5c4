"""The families that grow against recorded tensors of another implementation, and what holds at each level of detail."""

import copy
import json
from math import floor
from pathlib import Path

import pytest
import torch
from runs_for_tests import game_of, in_float64, tiny_config
from safetensors import safe_open
from safetensors.torch import load_file
from torch.func import functional_call
from torch.nn import functional as F

from imago.trainer.config.load import OptimConfig
from imago.trainer.engine.optim import Adam, set_rates
from imago.trainer.games.latent import MicroBatch
from imago.trainer.models import num_parameters, pggan, stylegan1
from imago.trainer.models.growing import conv_down2d, up_conv2d
from imago.trainer.objectives.regularizers import GRADIENT_PENALTIES

GOLDEN = Path(__file__).parents[1] / 'golden'
FAMILIES = {'pggan': pggan, 'stylegan1': stylegan1}
LODS = [0.0, 0.25, 1.0, 1.6, 2.0, 3.7, 4.0]
by_family = pytest.mark.parametrize('family', FAMILIES)


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def make(family, resolution=(16, 16), c_dim=0, z_dim=16, w_dim=16, mapping_layers=2, channels=16, **options):
    """An untrained pair, the same weights at every precision."""
    torch.manual_seed(0)
    both = {'c_dim': c_dim, 'resolution': resolution, 'img_channels': 3, 'channel_base': max(resolution) * 8,
            'channel_max': channels, **options}
    styles = {'w_dim': w_dim, 'mapping_layers': mapping_layers} if family == 'stylegan1' else {}
    return FAMILIES[family].Generator(z_dim=z_dim, **both, **styles), FAMILIES[family].Discriminator(**both)


def set_lod(lod, *networks):
    for network in networks:
        for name, buffer in network.named_buffers():
            if name.rpartition('.')[2] == 'lod':
                buffer.fill_(lod)


@pytest.fixture(params=FAMILIES)
def recorded(request):
    """(module, function that makes G and D of the recorded sizes, tensors)"""
    path = GOLDEN / f'{request.param}.safetensors'
    with safe_open(path, 'pt') as file:
        config = json.loads(file.metadata()['config'])

    def untrained():
        return make(request.param, (config['resolution'],) * 2, z_dim=config['z_dim'], w_dim=config['z_dim'],
                    mapping_layers=config['mapping_layers'], channels=config['fmaps_max'])
    return FAMILIES[request.param], untrained, load_file(path)


def weights_of(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture
def golden(recorded):
    """(G, D, tensors), with the recorded weights."""
    family, untrained, tensors = recorded
    G, D = untrained()
    for network, prefix in (G, 'G.'), (D, 'D.'):
        network.load_state_dict(family.from_published(weights_of(tensors, prefix)))
    return G, D, tensors


@pytest.mark.parametrize('lod', LODS)
def test_golden(golden, lod):
    G, D, tensors = golden
    set_lod(lod, G, D)
    c, shrink = torch.zeros(4, 0), 2 ** floor(lod)
    noise = {'noise': 'const'} if hasattr(G, 'synthesis') else {}
    images = F.interpolate(G(tensors['z'], c, **noise), scale_factor=shrink)
    logits = D(F.avg_pool2d(tensors[f'D_in_lod{lod}'], shrink), c)
    assert relative_error(images, tensors[f'img_lod{lod}']) < 1e-4
    assert relative_error(logits, tensors[f'D_out_lod{lod}']) < 1e-4


@pytest.mark.parametrize('which', [0, 1], ids='GD')
def test_a_step_of_adam_is_that_of_the_published_parameters(recorded, which):
    """What a published layer adds after its gain of sqrt(2), ours adds before it. Both must learn alike."""
    family, untrained, tensors = recorded
    with in_float64():
        network, config = untrained()[which], OptimConfig(eps=1e-3)    # so large that its part in a step is seen
        inputs = torch.randn(4, 3, 64, 64) if which else tensors['z'].double(), torch.zeros(4, 0)
        theirs = {name: tensor.double() for name, tensor in weights_of(tensors, 'GD'[which] + '.').items()}
        theirs['lod' if 'lod' in theirs else 'synthesis.lod'].fill_(0.25)
        network.load_state_dict(family.from_published(theirs))
        learned = [tensor.requires_grad_() for name, tensor in theirs.items()
                   if not name.endswith(('lod', 'blur.kernel', 'apply_noise.noise'))]
        published = torch.optim.Adam(learned, lr=0.01, betas=config.betas, eps=config.eps)
        ours, before = Adam(network, config), copy.deepcopy(network.state_dict())
        set_rates(ours, 0.01, config, 0, None)
        for _ in range(2):
            for adam, weights in (ours, {}), (published, family.from_published(theirs)):
                torch.manual_seed(1)
                adam.zero_grad()
                functional_call(network, weights, inputs).square().mean().backward()
                adam.step()
        expected, moved = family.from_published(theirs), 0
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-8, msg=name)    # a step is up to 1e-2
            moved += not torch.equal(parameter, before[name])
        assert moved >= 0.8 * len(learned), 'the pictures of coarser sizes are not in use'


def test_convolutions_that_resample_in_one():
    x, weight = torch.randn(2, 3, 6, 4, dtype=torch.float64), torch.randn(5, 3, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(up_conv2d(x, weight), F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1))
    torch.testing.assert_close(conv_down2d(x, weight), F.avg_pool2d(F.conv2d(x, weight, padding=1), 2))


@by_family
def test_pictures_and_logits_are_continuous_in_lod(family):
    """At a whole lod, the size that is about to begin, or has just ended, has no weight."""
    G, D = make(family)
    z, c, reals = torch.randn(4, 16), torch.zeros(4, 0), torch.randn(4, 3, 16, 16)
    noise = {'noise': 'const'} if family == 'stylegan1' else {}

    def at(lod):
        set_lod(lod, G, D)
        shrink = 2 ** floor(lod)
        return F.interpolate(G(z, c, **noise), scale_factor=shrink), D(F.avg_pool2d(reals, shrink), c)

    for lod in 1, 2:
        for ours, just_below, between in zip(at(lod), at(lod - 1e-5), at(lod - 0.5)):
            assert relative_error(just_below, ours) < 1e-3
            assert relative_error(between, ours) > 1e-2
    for ours, just_above in zip(at(1), at(1 + 1e-5)):
        assert relative_error(just_above, ours) < 1e-3


@by_family
@pytest.mark.parametrize('lod, in_use, pictures', [(0, {0, 1, 2}, {2}), (0.5, {0, 1, 2}, {1, 2}), (1, {0, 1}, {1}),
                                                   (2, {0}, {0})])
def test_gradients_reach_what_is_in_use(family, lod, in_use, pictures):
    G, D = make(family)
    set_lod(lod, G, D)
    D(G(torch.randn(2, 16), torch.zeros(2, 0)), torch.zeros(2, 0)).sum().backward()
    synthesis = getattr(G, 'synthesis', G)

    def reached(modules):
        trained = [{parameter.grad is not None for parameter in module.parameters()} for module in modules]
        assert all(len(one) == 1 for one in trained)
        return {index for index, one in enumerate(trained) if one == {True}}
    assert reached(synthesis.layers) == {index for i in in_use for index in (2 * i, 2 * i + 1)}
    assert reached(D.blocks) == in_use
    assert reached(synthesis.torgb) == reached(D.fromrgb) == pictures


@by_family
@pytest.mark.parametrize('resolution', [(4, 4), (8, 8), (48, 32), (5, 7), (1024, 1024)])
def test_sizes(family, resolution):
    G, D = make(family, resolution, c_dim=3, channels=8)
    c = torch.eye(3)[:2]
    for lod in {0, min(1.5, D.doublings)}:
        set_lod(lod, G, D)
        images = G(torch.randn(2, 16), c)
        assert images.shape == (2, 3, *(side >> floor(lod) for side in resolution)) and images.dtype == torch.float32
        assert D(images, c).shape == (2, 1)


@by_family
def test_labels_matter(family):
    G, D = make(family, c_dim=3)
    z, c = torch.randn(1, 16).expand(3, -1), torch.eye(3)
    images = G(z, c)
    assert (images[0] - images[1]).abs().max() > 1e-3
    logits = D(images[:1].expand(3, -1, -1, -1), c)
    assert (logits[0] - logits[1]).abs() > 1e-4


@by_family
def test_r1_in_the_middle_of_a_fade(family):
    """Without biases, D is homogeneous in each layer's weights, and R1 of degree 2: Euler gives its gradients' sums."""
    _, D = make(family)
    set_lod(0.3, D)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    gradient, = torch.autograd.grad(D(images, torch.zeros(4, 0)).sum(), images, create_graph=True)
    penalty = gradient.square().sum()
    penalty.backward()
    # of the two branches that fade into each other, layers scale the logits only together
    together = [['fromrgb.2', 'fromrgb.1'], ['blocks.2.0', 'fromrgb.1'], ['blocks.2.1', 'fromrgb.1'], ['blocks.1.0'],
                ['blocks.1.1'], ['blocks.0.conv'], ['blocks.0.fc'], ['blocks.0.out']]
    for names in together:
        weights = [D.get_submodule(name).weight for name in names]
        slope = sum((weight * weight.grad).sum() for weight in weights)
        torch.testing.assert_close(slope, 2 * penalty, rtol=1e-3, atol=0)


GROWTH = {'start_resolution': 4, 'stage_kimg': 0.024, 'fade_kimg': 0.048}   # the shards have 16 px
COSTS = {   # of D's loss, from the squared norms of its gradients
    'r1': lambda squared: squared / 2,
    'r2': lambda squared: squared / 2,
    'wgan_gp': lambda squared: ((squared + 1e-12).sqrt() - 1) ** 2,
    'dragan': lambda squared: ((squared + 1e-12).sqrt() - 1) ** 2,
}


@by_family
@pytest.mark.parametrize('penalty_at', ['stage', 'full'])
@pytest.mark.parametrize('penalty', COSTS)
def test_penalties_at_the_stage_and_at_full_size(shards, tmp_path, family, penalty, penalty_at):
    """At full size, a penalty takes the pictures enlarged, and D averages them down. D's gradients are compared as well."""
    with in_float64():
        config = tiny_config(shards, tmp_path, network={'name': family, 'z_dim': 8, 'channel_base': 64, 'channel_max': 4},
                             growth=GROWTH | {'penalty_at': penalty_at}, regularizers={penalty: 3.0})
        game = game_of(config)
        state, D, weights = game.state, game.D, list(game.D.requires_grad_(True).parameters())
        for nimg, lod in (0, 2), (48, 1.5), (72, 1), (120, 0.5), (144, 0):
            state.nimg = nimg
            game.begin_step()
            assert D.lod == lod
            side, doubled = 16 >> floor(lod), 2 ** floor(lod) if penalty_at == 'full' else 1
            (reals, fakes), c = torch.randn(2, 4, 3, side, side), torch.zeros(4, 0)
            torch.manual_seed(5)
            ours, means = game.gradient_penalties(MicroBatch(None, c, None, c), reals, fakes)
            torch.manual_seed(5)
            full = F.interpolate(GRADIENT_PENALTIES[penalty].points(reals, fakes), scale_factor=doubled).requires_grad_()
            gradient, = torch.autograd.grad(D(F.avg_pool2d(full, doubled), c).sum(), full, create_graph=True)
            expected = 3 * COSTS[penalty](gradient.square().sum(dim=(1, 2, 3))).mean()
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
            assert means[f'penalty/{penalty}'] * 3 * GRADIENT_PENALTIES[penalty].factor == ours
            learned, theirs = (torch.autograd.grad(loss, weights, materialize_grads=True) for loss in (ours, expected))
            torch.testing.assert_close(learned, theirs, rtol=1e-10, atol=1e-14)


@by_family
@pytest.mark.parametrize('low_precision, tolerance', [('bf16', 0.05), ('fp16', 0.005)])
def test_low_precision_is_close_and_ends_in_float32(family, low_precision, tolerance):
    (G, D), (G_low, D_low) = make(family), make(family, low_precision=low_precision, low_precision_blocks=1)
    set_lod(0.3, G, D, G_low, D_low)
    z, c = torch.randn(4, 16), torch.zeros(4, 0)
    if family == 'stylegan1':
        G, G_low = (lambda z, c, network=network: network(z, c, noise='const') for network in (G, G_low))
    images, low = G(z, c), G_low(z, c)
    logits, low_logits = D(images, c), D_low(images, c)
    assert low.dtype == low_logits.dtype == torch.float32
    assert 0 < ((low - images).std() / images.std()).item() < tolerance
    assert 0 < (low_logits - logits).abs().max().item() < tolerance


@by_family
def test_one_output_a_generator(family):
    D = FAMILIES[family].Discriminator(0, (8, 8), 3, channel_max=16, num_outputs=3)
    assert D(torch.randn(2, 3, 8, 8), torch.zeros(2, 0)).shape == (2, 3)
    with pytest.raises(ValueError, match='num_outputs 3 with c_dim 2: .*give c_dim 0'):
        FAMILIES[family].Discriminator(2, (8, 8), 3, num_outputs=3)


@by_family
def test_lod_out_of_range(family):
    G, D = make(family)
    set_lod(2.5, G, D)
    with pytest.raises(ValueError, match=r'lod 2.5 does not exist: this network has 0 \(full size\) to 2'):
        G(torch.randn(2, 16), torch.zeros(2, 0))


@pytest.mark.parametrize('family, published, in_G, in_D', [('pggan', 23.1, 23_079_115, 23_087_249),
                                                           ('stylegan1', 26.2, 26_219_627, 23_087_249)])
def test_published_sizes(family, published, in_G, in_D):
    """G and D of PGGAN: Karras et al. 2018, table 2, both 23.1M. G of StyleGAN: Karras et al. 2019, section 2, 26.2M."""
    both = {'c_dim': 0, 'resolution': (1024, 1024), 'img_channels': 3}
    with torch.device('meta'):
        G = FAMILIES[family].Generator(z_dim=512, **both, **({'w_dim': 512} if family == 'stylegan1' else {}))
        D = FAMILIES[family].Discriminator(**both)
    assert (num_parameters(G), num_parameters(D)) == (in_G, in_D)
    assert (round(in_G / 1e6, 1), round(in_D / 1e6, 1)) == (published, 23.1)
