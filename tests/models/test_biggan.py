"""BigGAN and BigGAN-deep against recorded tensors of another implementation, and what training relies on."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.autograd import gradgradcheck
from torch.nn import functional as F

from imago.trainer.models import biggan, biggan_deep, num_parameters
from imago.trainer.models.spectral import power_iterate
from imago.trainer.objectives.regularizers import orthogonal_penalty

GOLDEN = Path(__file__).parents[1] / 'golden'
FAMILIES = {'biggan': biggan, 'biggan_deep': biggan_deep}
Z_DIM = 20


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope='module', params=list(FAMILIES))
def golden(request):
    """(G, D, tensors, metadata), with the recorded weights. G's have u0 shorter than 1, as the published averages have."""
    path, family = GOLDEN / f'{request.param}.safetensors', FAMILIES[request.param]
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    config, tensors = json.loads(metadata['config']), load_file(path)
    both = {'c_dim': config['n_classes'], 'resolution': (config['resolution'],) * 2, 'img_channels': 3,
            'attention': int(config['G_attn']), 'eps': config['BN_eps']}
    both |= {'depth': config['G_depth']} if 'G_depth' in config else {}
    G = family.Generator(z_dim=config['dim_z'], channels=config['G_ch'], shared_dim=config['shared_dim'], **both)
    D = family.Discriminator(channels=config['D_ch'], **both)
    for network, prefix in (G, 'G.'), (D, 'D.'):
        recorded = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        shorter = {name: 0.9 * tensor for name, tensor in recorded.items() if network is G and name.endswith('u0')}
        network.load_state_dict(family.from_published(recorded | shorter))
    tensors['c'] = F.one_hot(tensors['y'], config['n_classes']).float()
    return G.eval(), D.eval(), tensors, metadata


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


def tiny(family, c_dim=3, resolution=(32, 32), **options):
    torch.manual_seed(0)
    both = {'c_dim': c_dim, 'resolution': resolution, 'img_channels': 3, 'channels': 8, **options}
    return family.Generator(z_dim=Z_DIM, shared_dim=4, **both), family.Discriminator(**both)


def inputs(count, c_dim=3):
    return torch.randn(count, Z_DIM), F.one_hot(torch.arange(count) % max(c_dim, 1), max(c_dim, 1))[:, :c_dim].float()


@torch.no_grad()
def test_golden_images_and_logits(golden):
    G, D, tensors, _ = golden
    before = copy.deepcopy(G.state_dict())
    assert relative_error(G(tensors['z'], tensors['c']), tensors['img']) < 1e-4
    assert relative_error(D(tensors['img'], tensors['c']), tensors['logits']) < 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in G.state_dict().items())


def test_golden_orthogonality(golden):
    """The sum over weights, the shared embedding's left out, of the squares off the diagonal of W W^T."""
    G, _, _, metadata = golden
    expected = float(metadata['ortho_offdiag_sq_sum_G_without_shared'])
    assert orthogonal_penalty(G, relaxed=True).item() == pytest.approx(expected, rel=1e-4)


def test_orthogonal_gradient_is_the_papers():
    """4 (W W^T off its diagonal) W, which is twice what BigGAN-PyTorch adds to the gradients."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3, dtype=torch.float64)
    orthogonal_penalty(layer).backward()
    gram = layer.weight @ layer.weight.T
    published = 2 * (gram - gram.diag().diag()) @ layer.weight
    torch.testing.assert_close(layer.weight.grad, 2 * published)


def test_published_parameter_counts():
    """Brock et al. 2019, appendix B: 70.4M and 88.0M; deep: 50.4M, and 34.6M.

    That deep generator's last convolution makes 128 maps, of which 3 are the picture: we leave the 125 out.
    """
    def millions(network, **options):
        with torch.device('meta'):
            return num_parameters(network(c_dim=1000, resolution=(128, 128), img_channels=3, **options)) / 1e6

    assert round(millions(biggan.Generator, z_dim=120), 1) == 70.4
    assert round(millions(biggan.Discriminator), 1) == 88.0
    assert round(millions(biggan_deep.Generator, z_dim=128) + 125 * (128 * 9 + 1) / 1e6, 1) == 50.4
    assert round(millions(biggan_deep.Discriminator), 1) == 34.6


@pytest.mark.parametrize('c_dim, resolution', [(0, (64, 64)), (3, (32, 48)), (3, (128, 64))])
def test_sizes_and_classes(family, c_dim, resolution):
    G, D = tiny(family, c_dim, resolution, attention=16)
    z, c = inputs(2, c_dim)
    images = G(z, c)
    assert images.shape == (2, 3, *resolution) and D(images, c).shape == (2, 1)
    assert any(name.endswith('gamma') for name, _ in G.named_parameters())
    assert any(name.endswith('gamma') for name, _ in D.named_parameters())
    if c_dim:
        other = c.roll(1, dims=1)
        assert not torch.allclose(G(z, other), images) and not torch.allclose(D(images, other), D(images, c))


def test_every_chunk_of_z_reaches_the_picture(family):
    G, _ = tiny(family)
    z, c = inputs(4)
    z.requires_grad_()
    gradient, = torch.autograd.grad(G(z, c).square().sum(), z)
    assert (gradient.abs().amax(dim=0) > 0).all()


def test_every_parameter_learns(family):
    G, D = tiny(family, attention=16)
    z, c = inputs(4)
    for network in G, D:
        for name, parameter in network.named_parameters():
            if name.endswith('gamma'):
                parameter.data.fill_(0.5)
    D(G(z, c), c).square().sum().backward()
    assert not [name for network in (G, D) for name, parameter in network.named_parameters()
                if parameter.grad is None or not parameter.grad.any()]


def test_low_precision_is_close(family):
    G, D = tiny(family, attention=16)
    G16, D16 = tiny(family, attention=16, low_precision='bf16', low_precision_blocks=2)
    for network, precise in (G16, G), (D16, D):
        network.load_state_dict(precise.state_dict())
    z, c = inputs(8)
    with torch.no_grad():
        images, images16 = G(z, c), G16(z, c)
        logits, logits16 = D(images, c), D16(images, c)
    assert images16.dtype == logits16.dtype == torch.float32
    assert 1e-5 < relative_error(images16, images) < 0.1 and 1e-5 < relative_error(logits16, logits) < 0.05


def test_attention_differentiates_twice():
    torch.manual_seed(0)
    attention = biggan.SelfAttention(8, 1e-4).double()
    attention.gamma.data.fill_(0.7)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(attention, (x,))


def test_gradient_penalty_reaches_the_weights(family):
    _, D = tiny(family, attention=16)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    gradient, = torch.autograd.grad(D(images, inputs(2)[1]).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert D.blocks[0][0].conv1.parametrizations.weight.original.grad.any()


def test_copies_and_saved_states_are_whole(family):
    """EMA and checkpoints need whole copies, also after steps."""
    G, _ = tiny(family)
    z, c = inputs(4)
    power_iterate(G)
    G(z, c)
    kept = copy.deepcopy(G).eval()
    other, _ = tiny(family)
    other.load_state_dict(G.state_dict())
    with torch.no_grad():
        expected = G.eval()(z, c)
        assert torch.equal(kept(z, c), expected) and torch.equal(other.eval()(z, c), expected)


def test_bad_sizes_are_refused(family):
    for resolution in (16, 16), (1024, 1024):
        with pytest.raises(ValueError, match='32, 64, 128, 256, 512'):
            family.Generator(20, 0, resolution, 3)
    with pytest.raises(ValueError, match='z_dim 21 .* take 80'):
        biggan.Generator(21, 0, (32, 32), 3)
    with pytest.raises(ValueError, match='num_outputs 4'):
        family.Discriminator(3, (32, 32), 3, num_outputs=4)
