"""Each loss against its formula written another way, and the properties that training relies on."""

import pytest
import torch
from torch.nn.functional import one_hot

from imago.trainer.config.losses import LOSS_FACTS
from imago.trainer.objectives.losses import LOSSES, auxiliary_loss, began_balance, mad_gan_d, mad_gan_g


@pytest.fixture
def logits():
    """Real and fake, [64, 1] each, wide enough to reach every branch."""
    return 3 * torch.randn(2, 64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def probability_loss_d(real, fake):
    return -(real.sigmoid().log() + (1 - fake.sigmoid()).log()).mean()


FORMULAS = {
    'minimax': (probability_loss_d, lambda fake, real: (1 - fake.sigmoid()).log().mean()),
    'nonsaturating': (probability_loss_d, lambda fake, real: -fake.sigmoid().log().mean()),
    'wgan': (lambda real, fake: -(real - fake).mean(), lambda fake, real: (0 - fake).mean()),
    'least_squares': (lambda real, fake: 0.5 * (real ** 2 - 2 * real + 1 + fake ** 2).mean(),
                      lambda fake, real: 0.5 * (fake ** 2 - 2 * fake + 1).mean()),
    'hinge': (lambda real, fake: -((real - 1).clamp(max=0) + (-fake - 1).clamp(max=0)).mean(),
              lambda fake, real: -fake.mean()),
    'relativistic': (lambda real, fake: (1 + (-(real - fake)).exp()).log().mean(),
                     lambda fake, real: (1 + (-(fake - real)).exp()).log().mean()),
    'began': (lambda real, fake: (real - fake / 4).sum() / 64, lambda fake, real: fake.sum() / 64),
}


@pytest.mark.parametrize('name', LOSSES)
def test_formula(name, logits):
    real, fake = logits
    d_formula, g_formula = FORMULAS[name]
    k = (0.25,) if name == 'began' else ()
    torch.testing.assert_close(LOSSES[name].d_loss(real, fake, *k), d_formula(real, fake))
    torch.testing.assert_close(LOSSES[name].g_loss(fake, real), g_formula(fake, real))


@pytest.mark.parametrize('name', [name for name in LOSSES if name not in ('began', 'least_squares')])
def test_gradients_pull_reals_up_and_fakes_apart(name, logits):
    real, fake = (part.clone().requires_grad_() for part in logits)
    on_real, on_fake = torch.autograd.grad(LOSSES[name].d_loss(real, fake), (real, fake))
    assert (on_real <= 0).all() and (on_fake >= 0).all() and on_real.any() and on_fake.any()
    assert (torch.autograd.grad(LOSSES[name].g_loss(fake, real.detach()), fake)[0] < 0).all()


@pytest.mark.parametrize('name', LOSSES)
def test_only_pairs_needs_the_reals(name, logits):
    real, fake = logits
    loss = LOSSES[name]
    if LOSS_FACTS[name].paired:
        assert loss.g_loss(fake, real) != loss.g_loss(fake, real + 1)
    else:
        assert loss.g_loss(fake, None) == loss.g_loss(fake, real)


@pytest.mark.parametrize('name, finite', [('minimax', 0.0), ('nonsaturating', 1000.0), ('relativistic', 2000.0)])
def test_extreme_logits_stay_finite(name, finite):
    real, fake = torch.full((4, 1), 1000.0), torch.full((4, 1), -1000.0)
    assert LOSSES[name].d_loss(real, fake) == 0 and LOSSES[name].g_loss(fake, real) == finite


def test_minimax_saturates_where_nonsaturating_does_not():
    fake = torch.full((1, 1), -20.0, requires_grad=True)
    weak, strong = (torch.autograd.grad(LOSSES[name].g_loss(fake, None), fake)[0].item()
                    for name in ('minimax', 'nonsaturating'))
    assert -1e-8 < weak < 0 and strong == pytest.approx(-1)


def test_least_squares_rests_at_its_labels():
    real, fake = torch.ones(3, 1), torch.zeros(3, 1)
    assert LOSSES['least_squares'].d_loss(real, fake) == 0 == LOSSES['least_squares'].g_loss(real, None)


def test_hinge_ignores_what_is_beyond_its_margin():
    real, fake = (torch.tensor(values, requires_grad=True) for values in ([1.0, 5.0, 0.5], [-1.5, -9.0, -0.5]))
    on_real, on_fake = torch.autograd.grad(LOSSES['hinge'].d_loss(real, fake), (real, fake))
    assert on_real.tolist() == pytest.approx([0, 0, -1 / 3]) and on_fake.tolist() == pytest.approx([0, 0, 1 / 3])


def test_relativistic_sees_only_differences_within_pairs(logits):
    real, fake = logits
    loss = LOSSES['relativistic']
    shift = torch.randn_like(real)
    torch.testing.assert_close(loss.d_loss(real + shift, fake + shift), loss.d_loss(real, fake))
    torch.testing.assert_close(loss.g_loss(fake + shift, real + shift), loss.g_loss(fake, real))
    assert not torch.isclose(loss.d_loss(real.flip(0), fake), loss.d_loss(real, fake))


def test_began_k_rests_at_equilibrium_and_stays_in_range():
    k, gamma = torch.tensor(0.3), 0.5
    assert began_balance(k, torch.tensor(2.0), torch.tensor(1.0), gamma, 0.1) == k
    # fakes reconstructed too well: D must attend to them more
    assert began_balance(k, torch.tensor(2.0), torch.tensor(0.5), gamma, 0.1).item() == pytest.approx(0.35)
    assert began_balance(k, torch.tensor(2.0), torch.tensor(3.0), gamma, 0.1).item() == pytest.approx(0.1)
    assert began_balance(k, torch.tensor(100.0), torch.tensor(0.0), gamma, 0.1) == 1
    assert began_balance(k, torch.tensor(0.0), torch.tensor(100.0), gamma, 0.1) == 0


def test_mad_gan_formula():
    real, fake = torch.randn(2, 6, 4, dtype=torch.float64)
    generator = torch.tensor([0, 1, 2, 0, 1, 2])
    p_real, p_fake = real.softmax(dim=1), fake.softmax(dim=1)
    named = sum(p_fake[generator == i, 1 + i].log().mean() for i in range(3))
    torch.testing.assert_close(mad_gan_d(real, fake, generator), -p_real[:, 0].log().mean() - named)
    torch.testing.assert_close(mad_gan_g(fake), -p_fake[:, 0].log().mean())


def test_mad_gan_of_one_generator_is_the_nonsaturating_loss():
    real, fake = torch.randn(2, 6, 2, dtype=torch.float64)
    logit = [(outputs[:, :1] - outputs[:, 1:]) for outputs in (real, fake)]
    one = LOSSES['nonsaturating']
    torch.testing.assert_close(mad_gan_d(real, fake, torch.zeros(6, dtype=torch.int64)), one.d_loss(*logit))
    torch.testing.assert_close(mad_gan_g(fake), one.g_loss(logit[1], None))


def test_mad_gan_optimum_shares_a_point_evenly():
    """Where data and generators are equally dense the best D says 1 / (1 + generators) for each."""
    outputs = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    generator = torch.tensor([0, 1, 2, 0, 1, 2])
    gradient, = torch.autograd.grad(mad_gan_d(outputs, outputs, generator), outputs)
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(4, dtype=torch.float64))


def test_auxiliary_loss_is_the_log_probability_of_the_class():
    logits, classes = torch.randn(5, 3), torch.tensor([0, 2, 1, 2, 0])
    expected = -logits.softmax(dim=1)[torch.arange(5), classes].log().mean()
    torch.testing.assert_close(auxiliary_loss(logits, one_hot(classes, 3).float()), expected)
