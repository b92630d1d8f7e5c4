"""Several generators in one network: which makes which picture, what they share, and that an export has the same ones."""

import pytest
import torch
from families_for_tests import FAMILIES, config_of
from runs_for_tests import train_here

from imago.trainer.config.load import OptimConfig
from imago.trainer.engine.optim import Adam, set_rates
from imago.trainer.games.makers import SeveralMaker, generate
from imago.trainer.models import build_network
from imago.trainer.models.spectral import power_iterate
from imago.trainer.ranks import dist
from imago.trainer.runs.export import load_generator
from imago.trainer.tools import export

WITHOUT_STYLES = [name for name in FAMILIES if not name.startswith('stylegan')]
COUNT, CLASSES = 3, 2
NOT_ITS_OPTIONS = ('name', 'mbstd_group', 'code_dim')


def several(name, classes=0):
    torch.manual_seed(0)
    options = {'c_dim': classes, 'resolution': (32, 32), 'img_channels': 3}
    options |= {key: value for key, value in FAMILIES[name]['network'].items() if key not in NOT_ITS_OPTIONS}
    return build_network('generator', 'several', {'model': name, 'count': COUNT, 'options': options})


def in_tail(name, tail):
    return any(name == part or name.startswith(part + '.') for part in tail)


@pytest.mark.parametrize('name', WITHOUT_STYLES)
@pytest.mark.parametrize('classes', [0, CLASSES])
def test_row_i_is_made_by_generator_i_modulo_k(name, classes):
    G = several(name, classes).eval()
    z, c = torch.randn(7, G.z_dim), torch.eye(CLASSES)[[0, 1, 1, 0, 0, 1, 0]][:, :classes]     # 7: not as many by each
    with torch.no_grad():
        images = G(z, c)
        for i, image in enumerate(images):
            alone = [one(z[i:i + 1], c[i:i + 1])[0] for one in G.generators]
            distances = [((image - picture).abs().max() / image.abs().max()).item() for picture in alone]
            assert distances.pop(i % COUNT) < 1e-4 and min(distances) > 0.01
    assert images.shape == (7, 3, 32, 32)


@pytest.mark.parametrize('name', WITHOUT_STYLES)
def test_all_but_the_tail_is_shared(name):
    G = several(name)
    first, *others = G.generators
    named = dict(first.named_parameters())
    assert 0 < sum(in_tail(key, first.tail) for key in named) < len(named)
    for other in others:
        assert [key for key, _ in other.named_parameters()] == list(named)
        for key, parameter in other.named_parameters():
            assert (parameter is named[key]) != in_tail(key, first.tail), key
        assert any(in_tail(key, first.tail) and not torch.equal(parameter, named[key])
                   for key, parameter in other.named_parameters())
    assert len(list(G.parameters())) == len(named) + (COUNT - 1) * sum(in_tail(key, first.tail) for key in named)


def test_shared_parameters_are_stepped_once():
    G, lr = several('dcgan'), 0.01
    adam = Adam(G, OptimConfig())
    set_rates(adam, lr, OptimConfig(), 0, None)
    before = [parameter.clone() for parameter in G.parameters()]
    G(torch.randn(6, G.z_dim), torch.zeros(6, 0)).square().mean().backward()
    adam.step()
    assert all(state['step'] == 1 for state in adam.state.values())
    for was, parameter in zip(before, G.parameters(), strict=True):
        assert (parameter - was).abs().max().item() == pytest.approx(lr, rel=0.05)      # Adam's first step, once


def test_shared_parameters_learn_from_all_generators():
    G = several('dcgan').eval()
    z, c = torch.randn(3, G.z_dim), torch.zeros(3, 0)
    G(z, c).square().sum().backward()
    together = G.generators[0].fc.weight.grad.clone()
    G.zero_grad()
    for index, one in enumerate(G.generators):
        one(z[index:index + 1], c[:1]).square().sum().backward()
    assert torch.allclose(G.generators[2].fc.weight.grad, together, rtol=1e-4)


def test_a_shared_layer_iterates_once_for_its_norm():
    """Spectral norm's vectors, of a layer that three generators have, move as one generator's do."""
    one = several('biggan').generators[0]
    power_iterate(one)
    expected = one.linear.parametrizations.weight[0].u0.clone()
    G = several('biggan')
    power_iterate(G)
    assert torch.equal(G.generators[2].linear.parametrizations.weight[0].u0, expected)


def test_an_export_of_a_run_gives_the_same_pictures(wide_shards, tmp_path):
    dist.init('cpu')
    train_here(config_of('mad-gan', wide_shards, tmp_path / 'run'))
    assert export.main([str(tmp_path / 'run'), str(tmp_path / 'export')]) == 0
    G, exported = load_generator(tmp_path / 'run'), load_generator(tmp_path / 'export')
    z, c = torch.randn(6, G.z_dim), torch.zeros(6, 0)
    assert torch.equal(G(z, c), exported(z, c))
    assert exported.generators[0].fc is exported.generators[2].fc
    assert not torch.equal(exported(z, c)[0], exported(z[[1, 0, 2]], c[:3])[1]), 'who makes a picture is seen in it'


def test_a_seed_has_its_generator_whatever_else_is_sampled():
    maker = SeveralMaker({'G': several('dcgan').eval()}, ())
    alone, among = (maker.inputs(seeds) for seeds in ([7], [5, 6, 7, 8]))
    assert (generate(maker, alone)[0] == generate(maker, among, batch=3)[2]).all()
    assert len(set(maker.inputs(range(30)).labels.tolist())) == COUNT
