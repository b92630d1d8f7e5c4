"""StyleGAN2 against recorded tensors of another implementation, and the properties that training relies on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from imago.trainer.models import mix_styles, num_parameters
from imago.trainer.models.layers import append_minibatch_stddev
from imago.trainer.models.stylegan2 import (
    Discriminator,
    Generator,
    from_published,
    modulated_conv2d,
)

GOLDEN = Path(__file__).parents[1] / 'golden'


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope='module', params=['uncond', 'cond'])
def golden(request):
    """(G, D, tensors), with the recorded weights."""
    path = GOLDEN / f'stylegan2_{request.param}.safetensors'
    with safe_open(path, 'pt') as file:
        config = json.loads(file.metadata()['config'])
    tensors = load_file(path)
    both = {name: config[name] for name in ('c_dim', 'img_channels', 'channel_base', 'channel_max')}
    both['resolution'] = (config['img_resolution'],) * 2
    G = Generator(**both, **{name: config[name] for name in ('z_dim', 'w_dim', 'mapping_layers')})
    D = Discriminator(**both)
    for network, prefix in (G, 'G.'), (D, 'D.'):
        network.load_state_dict(from_published({name.removeprefix(prefix): tensor for name, tensor in tensors.items()
                                                if name.startswith(prefix)}))
    tensors['c'] = tensors['c'].float()
    return G, D, tensors


def tiny(low_precision='none', blocks=0, resolution=(16, 16), c_dim=0, channels=32):
    """An untrained pair, the same weights at every precision."""
    torch.manual_seed(0)
    both = {'c_dim': c_dim, 'resolution': resolution, 'img_channels': 3, 'channel_base': max(resolution) * 8,
            'channel_max': channels, 'low_precision': low_precision, 'low_precision_blocks': blocks}
    return Generator(z_dim=16, w_dim=16, mapping_layers=2, **both), Discriminator(label_layers=2, **both)


def test_golden_styles(golden):
    G, _, tensors = golden
    assert relative_error(G.mapping(tensors['z'], tensors['c']), tensors['ws']) < 1e-4
    assert relative_error(G.mapping(tensors['z'], tensors['c'], truncation_psi=0.7), tensors['ws_psi07']) < 1e-4


def test_golden_images(golden):
    G, _, tensors = golden
    assert relative_error(G(tensors['z'], tensors['c'], noise='const'), tensors['img_const']) < 1e-4
    assert relative_error(G(tensors['z'], tensors['c'], noise='none'), tensors['img_nonoise']) < 1e-4
    assert relative_error(G(tensors['z'], tensors['c'], 0.7, noise='const'), tensors['img_psi07']) < 1e-4


def test_golden_logits_and_r1(golden):
    _, D, tensors = golden
    images = tensors['img_const'].clone().requires_grad_()
    logits = D(images, tensors['c'])
    gradient, = torch.autograd.grad(logits.sum(), images)
    assert relative_error(logits, tensors['logits']) < 1e-4
    assert relative_error(gradient.square().sum(dim=(1, 2, 3)), tensors['r1_penalty']) < 1e-4


def test_golden_path_lengths(golden):
    """The recorded noise has 1 / sqrt(HW) in it.

    One conditional sample sits on a kink of leaky ReLU, where rounding chooses the slope: it is 3.4e-4 off.
    """
    G, _, tensors = golden
    ws = tensors['ws'].clone().requires_grad_()
    gradient, = torch.autograd.grad((G.synthesis(ws, noise='const') * tensors['pl_noise']).sum(), ws)
    lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
    error = (lengths / tensors['pl_lengths'] - 1).abs()
    assert (error < 1e-4).sum() >= 3 and error.max() < 5e-4


@pytest.mark.parametrize('demodulate, up', [(True, False), (True, True), (False, False)])
def test_modulated_convolution_is_twice_differentiable(demodulate, up):
    torch.manual_seed(0)
    x, weight, style = (torch.randn(*shape, dtype=torch.float64, requires_grad=True)
                        for shape in ((2, 2, 3, 3), (3, 2, 3, 3), (2, 2)))
    up_filter = torch.rand(4, 4, dtype=torch.float64) if up else None

    def call(x, weight, style):
        return modulated_conv2d(x, weight, style, demodulate=demodulate, up_filter=up_filter)
    assert torch.autograd.gradcheck(call, (x, weight, style))
    assert torch.autograd.gradgradcheck(call, (x, weight, style))


def test_demodulation_gives_unit_variance():
    """Equation 3: for unit-variance inputs, whatever the scale of styles and weights."""
    torch.manual_seed(0)
    y = modulated_conv2d(torch.randn(4, 16, 32, 32), 5 * torch.randn(8, 16, 3, 3), 3 * torch.randn(4, 16))
    torch.testing.assert_close(y[:, :, 1:-1, 1:-1].std(dim=(2, 3)), torch.ones(4, 8), rtol=0.15, atol=0)


@pytest.mark.parametrize('resolution', [(4, 4), (8, 8), (48, 32), (5, 7), (1024, 1024)])
def test_sizes(resolution):
    G, D = tiny(resolution=resolution, c_dim=3, channels=8)
    c = torch.eye(3)[:2]
    images = G(torch.randn(2, 16), c)
    logits = D(images, c)
    assert images.shape == (2, 3, *resolution) and logits.shape == (2, 1)
    logits.sum().backward()
    unused = [name for net in (G, D) for name, parameter in net.named_parameters() if parameter.grad is None]
    assert not unused


def test_labels_matter():
    G, D = tiny(c_dim=3)
    z, c = torch.randn(1, 16).expand(3, -1), torch.eye(3)
    images = G(z, c, noise='none')
    assert (images[0] - images[1]).abs().max() > 1e-3
    logits = D(images[:1].expand(3, -1, -1, -1), c)
    assert (logits[0] - logits[1]).abs() > 1e-4


def test_noise():
    G, _ = tiny()
    with torch.no_grad():
        G.synthesis.b16.conv0.noise_strength.fill_(1.0)
    ws = G.mapping(torch.randn(2, 16), torch.zeros(2, 0))
    assert torch.equal(G.synthesis(ws, 'const'), G.synthesis(ws, 'const'))
    assert not torch.allclose(G.synthesis(ws), G.synthesis(ws))
    assert not torch.allclose(G.synthesis(ws, 'none'), G.synthesis(ws, 'const'))
    with pytest.raises(ValueError, match="noise 'loud' is unknown"):
        G.synthesis(ws, 'loud')


@pytest.mark.parametrize('low_precision, tolerance', [('bf16', 0.03), ('fp16', 0.004)])
def test_low_precision_is_close_and_ends_in_float32(low_precision, tolerance):
    (G, D), (G_low, D_low) = tiny(resolution=(32, 32)), tiny(low_precision, 3, resolution=(32, 32))
    z, c = torch.randn(4, 16), torch.zeros(4, 0)
    images, low = G(z, c, noise='const'), G_low(z, c, noise='const')
    logits, low_logits = D(images, c), D_low(images, c)
    assert low.dtype == low_logits.dtype == torch.float32
    assert 0 < ((low - images).std() / images.std()).item() < tolerance
    assert 0 < (low_logits - logits).abs().max().item() < tolerance
    (low.sum() + low_logits.sum()).backward()
    assert all(parameter.grad.isfinite().all() for net in (G_low, D_low) for parameter in net.parameters())


def test_low_precision_blocks_are_the_finest():
    G, D = tiny('bf16', 1)
    assert (G.synthesis.b16.dtype, G.synthesis.b8.dtype) == (torch.bfloat16, torch.float32)
    assert (D.b16.dtype, D.b8.dtype) == (torch.bfloat16, torch.float32)
    assert tiny('bf16', 9)[0].synthesis.b4.dtype == torch.float32


def test_float16_survives_large_styles_and_weights():
    x = torch.randn(2, 64, 8, 8)
    weight, style = 300 * torch.randn(8, 64, 3, 3), 1000 * torch.randn(2, 64)
    y = modulated_conv2d(x.half(), weight, style)
    torch.testing.assert_close(y.float(), modulated_conv2d(x, weight, style), rtol=2e-2, atol=2e-2)


def test_micro_batches_of_whole_groups_give_the_same_logits():
    _, D = tiny()
    images, c = torch.randn(8, 3, 16, 16), torch.zeros(8, 0)
    split = torch.cat([D(images[:4], c[:4]), D(images[4:], c[4:])])
    torch.testing.assert_close(D(images, c), split, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('count, groups', [(8, [4, 4]), (6, [3, 3]), (2, [2]), (7, [1] * 7)])
def test_minibatch_stddev_groups(count, groups):
    x = torch.randn(count, 2, 3, 3)
    deviation = append_minibatch_stddev(x, group=4)[:, 2]
    expected = [part.std(dim=0, unbiased=False).mean().expand(len(part)) for part in x.split(groups)]
    torch.testing.assert_close(deviation[:, 0, 0], torch.cat(expected), rtol=1e-3, atol=2e-4)


def test_truncation():
    G, _ = tiny()
    G.mapping.w_avg.copy_(torch.randn(16))
    z, c = torch.randn(2, 16), torch.zeros(2, 0)
    full, cut = G.mapping(z, c), G.mapping(z, c, truncation_psi=0, truncation_cutoff=2)
    torch.testing.assert_close(cut[:, :2], G.mapping.w_avg.expand(2, 2, -1))
    assert torch.equal(cut[:, 2:], full[:, 2:])


def test_mix_styles():
    ws, ws2 = torch.zeros(3, 4, 2), torch.ones(3, 4, 2)
    mixed = mix_styles(ws, ws2, torch.tensor([1, 3, 4]))
    assert mixed[:, :, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize('resolution, channel_base, in_G, in_D', [
    (256, 16384, 24_767_458, 24_001_089), (1024, 32768, 30_370_060, 29_012_513)])
def test_published_sizes(resolution, channel_base, in_G, in_D):
    both = {'c_dim': 0, 'resolution': (resolution,) * 2, 'img_channels': 3, 'channel_base': channel_base}
    with torch.device('meta'):
        assert num_parameters(Generator(z_dim=512, w_dim=512, **both)) == in_G
        assert num_parameters(Discriminator(**both)) == in_D


def test_impossible_networks():
    with pytest.raises(ValueError, match='nearest: 32x32 or 40x40'):
        tiny(resolution=(36, 36))
    with pytest.raises(ValueError, match='channel_base 8 leaves the finest block no channels: give at least 16'):
        Discriminator(c_dim=0, resolution=(16, 16), img_channels=3, channel_base=8)
