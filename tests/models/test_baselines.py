"""DCGAN, SNGAN, R3GAN and BEGAN: what their papers say of them, and the properties that training relies on."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.models import began, dcgan, num_parameters, r3gan, sngan

FAMILIES = {'dcgan': dcgan, 'sngan': sngan, 'r3gan': r3gan, 'began': began}
WITHOUT_BATCH_NORM = ('sngan', 'r3gan', 'began')


def make(name, resolution=(16, 16), c_dim=0, channels=4, perturbed=False, **options):
    """A pair with few channels; `perturbed` from its initial weights, some of which are 0."""
    torch.manual_seed(0)
    if name == 'r3gan':
        widths = {'channel_base': channels * (4 << base_and_doublings(resolution)[1]), 'channel_max': 2 * channels}
        options = widths | {'group_size': channels} | options
    else:
        options['channels'] = channels
    both = {'c_dim': c_dim, 'resolution': resolution, 'img_channels': 3, **options}
    G, D = FAMILIES[name].Generator(z_dim=8, **both), FAMILIES[name].Discriminator(**both)
    if perturbed:
        with torch.no_grad():
            for parameter in [*G.parameters(), *D.parameters()]:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return G, D


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('resolution', [(4, 4), (8, 8), (16, 16), (64, 64), (48, 32), (5, 7)])
def test_sizes(name, resolution):
    G, D = make(name, resolution, c_dim=3)
    c = torch.eye(3)[:2]
    images = G(torch.randn(2, 8), c)
    logits = D(images, c)
    assert images.shape == (2, 3, *resolution) and logits.shape == (2, 1)
    assert images.dtype == logits.dtype == torch.float32
    logits.sum().backward()
    unused = [name for net in (G, D) for name, parameter in net.named_parameters() if parameter.grad is None]
    assert not unused
    assert [G.get_submodule(name) for name in G.tail]       # MAD-GAN finds them


@pytest.mark.parametrize('name', FAMILIES)
def test_impossible_sizes(name):
    with pytest.raises(ValueError, match='resolution 50x32 .*multiples of 8'):
        make(name, (50, 32))


@pytest.mark.parametrize('name', FAMILIES)
def test_labels_matter(name):
    G, D = (network.eval() for network in make(name, c_dim=3, perturbed=True))
    images = G(torch.randn(1, 8).expand(3, -1), torch.eye(3))
    assert (images[0] - images[1]).abs().max() > 1e-3
    logits = D(images[:1].expand(3, -1, -1, -1), torch.eye(3))
    assert (logits[0] - logits[1]).abs() > 1e-6


@pytest.mark.parametrize('name', FAMILIES)
def test_more_outputs(name):
    if name == 'began':
        with pytest.raises(ValueError, match='num_outputs 4: an autoencoder'):
            make_discriminator(name, num_outputs=4)
        return
    assert make_discriminator(name, num_outputs=4)(torch.randn(2, 3, 16, 16), torch.zeros(2, 0)).shape == (2, 4)
    with pytest.raises(ValueError, match='num_outputs 4 with c_dim 3'):
        make_discriminator(name, c_dim=3, num_outputs=4)


def make_discriminator(name, c_dim=0, num_outputs=1):
    return FAMILIES[name].Discriminator(c_dim, (16, 16), 3, num_outputs=num_outputs)


@pytest.mark.parametrize('name', FAMILIES)
def test_initial_outputs(name):
    """At published widths: pictures that are neither grey nor saturated, and logits that no loss saturates at."""
    G, D = make(name, channels=64)
    with torch.no_grad():
        images = G(torch.randn(8, 8), torch.zeros(8, 0))
        logits = D(torch.randn(8, 3, 16, 16), torch.zeros(8, 0))
    assert 0.02 < images.std() < 1.5 and images.mean().abs() < 0.5
    assert (images[0] - images[1]).abs().max() > 0.01
    assert logits.abs().max() < 10


@pytest.mark.parametrize('name', WITHOUT_BATCH_NORM)
def test_gradient_penalty_has_the_right_gradient(name):
    """R1's derivative along a random direction of D's parameters, against a finite difference."""
    D = make(name, (8, 8), c_dim=3, perturbed=True)[1].double()
    for stage in D.modules():
        if isinstance(stage, r3gan.TypedLayers):
            stage.dtype = torch.float64
    parameters, c = list(D.parameters()), torch.eye(3, dtype=torch.float64)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    direction = [torch.randn_like(parameter) for parameter in parameters]

    def penalty():
        return torch.autograd.grad(D(images, c).sum(), images, create_graph=True)[0].square().sum()

    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True, materialize_grads=True)
    slope = sum((gradient * along).sum() for gradient, along in zip(gradients, direction)).item()
    step, ends = 1e-7, []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, along in zip(parameters, direction):
                parameter += sign * step * along
        ends.append(penalty().item())
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4) and abs(slope) > 1e-6


def test_dcgan_has_the_parameters_of_the_authors_network():
    """3,576,704 and 2,765,568 in PyTorch's DCGAN example, without biases at the layers that lack batch norm."""
    G, D = dcgan.Generator(100, 0, (64, 64), 3), dcgan.Discriminator(0, (64, 64), 3)
    assert num_parameters(G) == 3576704 + 3 and num_parameters(D) == 2765568 + 64 + 1
    assert G.blocks[0][2].weight.std().item() == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize('resolution, widths, sizes, blocks', [
    (128, 'doubling', [1024, 1024, 512, 256, 128, 64], [(64, True), (128, True), (256, True), (512, True), (1024, True),
                                                        (1024, False)]),
    (32, 'constant', [256, 256, 256, 256], [(128, True), (128, True), (128, False), (128, False)])])
def test_sngan_tables(resolution, widths, sizes, blocks):
    """The appendices of Miyato & Koyama 2018 (ImageNet) and Miyato et al. 2018 (CIFAR-10)."""
    with torch.device('meta'):
        G = sngan.Generator(128, 0, (resolution,) * 2, 3, widths=widths)
        D = sngan.Discriminator(0, (resolution,) * 2, 3, widths=widths)
    assert [block.conv0.in_channels for block in G.blocks] + [G.torgb.in_channels] == sizes
    assert [(block.conv1.out_channels, block.down) for block in D.blocks] == blocks


def test_sngan_normalises_all_of_d():
    D = make('sngan', c_dim=3)[1]
    layers = [layer for layer in D.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) > 5 and all(parametrize.is_parametrized(layer, 'weight') for layer in layers)
    with pytest.raises(ValueError, match="widths 'thin' is unknown: take one of doubling, constant"):
        make('sngan', widths='thin')


def test_r3gan_has_the_published_number_of_parameters():
    """23.058 and 23.010 million: Huang et al. 2024, the table of section 4, Config E."""
    with torch.device('meta'):
        G, D = r3gan.Generator(64, 0, (256, 256), 3), r3gan.Discriminator(0, (256, 256), 3)
    assert round(num_parameters(G) / 1e6, 3) == 23.058 and round(num_parameters(D) / 1e6, 3) == 23.010


def test_r3gan_block_starts_as_the_identity():
    """Fix-up: the last layer 0, the others scaled by (blocks in the network) ** -1/4, He's initialisation otherwise."""
    torch.manual_seed(0)
    block, x = r3gan.ResidualBlock(64, expansion=2, group_size=16, network_depth=16), torch.randn(2, 64, 5, 5)
    assert torch.equal(block(x), x)
    assert block.conv0.weight.std().item() == pytest.approx((2 / 1.04 / 64) ** 0.5 / 2, rel=0.05)
    assert block.conv1.weight.std().item() == pytest.approx((2 / 1.04 / (16 * 9)) ** 0.5 / 2, rel=0.05)
    (block(x) * torch.randn_like(x)).sum().backward()
    assert block.conv2.weight.grad.abs().max() > 0.1       # and can leave it
    with pytest.raises(ValueError, match='64 channels x expansion 2 are no multiple of group_size 24'):
        r3gan.ResidualBlock(64, expansion=2, group_size=24, network_depth=16)


def test_r3gan_in_low_precision():
    z, c, outputs = torch.randn(2, 8), torch.zeros(2, 0), []
    for low_precision in ('none', 'bf16'):
        G, D = make('r3gan', channels=16, perturbed=True, low_precision=low_precision, low_precision_blocks=2)
        images = G(z, c)
        outputs.append((images, D(images, c)))
    for exact, rounded in zip(*outputs):
        assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
        assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


class Perfect(nn.Module):
    def forward(self, code, c):
        return code


def test_began_energy_is_the_reconstruction_error():
    D, images, c = make('began')[1], torch.randn(3, 3, 16, 16), torch.zeros(3, 0)
    assert (D(images, c) > 0).all()
    reconstructed = D.decoder(D.encoder(images), c)
    torch.testing.assert_close(D(images, c)[1, 0], (images[1] - reconstructed[1]).abs().mean())
    D.encoder, D.decoder = nn.Identity(), Perfect()
    assert torch.equal(D(images, c), torch.zeros(3, 1))


def test_began_generator_is_the_decoder():
    G, D = began.Generator(64, 0, (32, 32), 3, channels=4), began.Discriminator(0, (32, 32), 3, channels=4)
    shapes = [[(name, tensor.shape) for name, tensor in network.state_dict().items()] for network in (G, D.decoder)]
    assert shapes[0] == shapes[1]
    assert D.encoder[:-2](torch.zeros(1, 3, 32, 32)).shape == (1, 3 * 4, 8, 8)     # n, 2n, 3n channels, down to 8 px
