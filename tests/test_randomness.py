import torch

from trainer.config import EMAConfig, OptimConfig
from trainer.ema import ema_decay, update_ema
from trainer.losses import LOSSES
from trainer.optim import make_adam
from trainer.randomness import draw, seed_for
from trainer.regularizers import path_length_penalty, path_lengths, r1_penalty

SIZES = {'z_dim': 4, 'num_ws': 6, 'style_mixing': 0.5}


def test_draws_are_a_function_of_seed_images_and_purpose():
    one, same = (draw(1, 640, 'G_main', 64, class_counts=(1, 3), **SIZES) for _ in range(2))
    assert torch.equal(one.z, same.z) and torch.equal(one.cutoff, same.cutoff) and torch.equal(one.labels, same.labels)
    for other in (draw(2, 640, 'G_main', 64, class_counts=(1, 3), **SIZES), draw(1, 704, 'G_main', 64, class_counts=(1, 3), **SIZES),
                  draw(1, 640, 'D_main', 64, class_counts=(1, 3), **SIZES)):
        assert not torch.equal(one.z, other.z)
    assert not torch.equal(one.z, one.z_mix)


def test_style_mixing_and_labels_follow_their_distributions():
    draws = draw(0, 0, '', 4000, class_counts=(1, 3), **SIZES)
    mixed = draws.cutoff < 6
    assert abs(mixed.float().mean() - 0.5) < 0.03
    assert draws.cutoff.min() == 1 and set(draws.cutoff[mixed].tolist()) == {1, 2, 3, 4, 5}
    assert abs(draws.labels.float().mean() - 0.75) < 0.03


def test_seeds_are_frozen():
    # a change here changes the noise of every run that is resumed
    assert seed_for(0, 12_000, 'D_main', 3) == seed_for(0, 12_000, 'D_main', 3) != seed_for(0, 12_000, 'D_main', 2)
    assert seed_for(0, 0, 'weights') == 8230893084300640452


def test_ema_half_life_and_rampup():
    assert ema_decay(10**6, 64, EMAConfig(half_life_kimg=0.064)) == 0.5
    assert ema_decay(1000, 100, EMAConfig(half_life_kimg=10, rampup=0.05)) == 0.5 ** 2
    assert ema_decay(0, 64, EMAConfig(half_life_kimg=10, rampup=0.05)) == 0
    average, network = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(network.weight, 3.0)
    network.running_mean.fill_(7)
    update_ema(average, network, 0.75)
    assert average.weight.tolist() == [1.5, 1.5] and average.running_mean.tolist() == [7, 7]


def test_adam_is_corrected_for_lazy_regularisation():
    adam = make_adam(torch.nn.Linear(1, 1), 0.002, OptimConfig(betas=(0.5, 0.99)), 16)
    group = adam.param_groups[0]
    assert group['lr'] == 0.002 * 16 / 17 and group['betas'] == (0.5 ** (16 / 17), 0.99 ** (16 / 17))
    assert make_adam(torch.nn.Linear(1, 1), 0.002, OptimConfig(), None).param_groups[0]['lr'] == 0.002


def test_nonsaturating_loss_has_its_closed_form():
    real, fake = torch.randn(2, 5, 1, dtype=torch.float64)
    loss = LOSSES['nonsaturating']
    assert torch.allclose(loss.d_loss(real, fake), -(real.sigmoid().log() + (1 - fake.sigmoid()).log()).mean())
    assert torch.allclose(loss.g_loss(fake), -fake.sigmoid().log().mean())


def test_r1_and_path_lengths_of_linear_maps():
    weight = torch.randn(3, 4, 5, dtype=torch.float64)
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    logits = (images * weight).sum(dim=(1, 2, 3)).unsqueeze(1)
    assert torch.allclose(r1_penalty(logits, images), weight.square().sum().expand(2))

    ws = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    jacobian = torch.randn(3 * 4 * 4, 6, dtype=torch.float64)  # the picture is J (sum of the layers' w)
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    lengths = path_lengths((ws.sum(dim=1) @ jacobian.T).view(2, 3, 4, 4), ws, noise)
    expected = (noise.flatten(1) @ jacobian / 4).norm(dim=1)
    assert torch.allclose(lengths, expected)
    assert torch.allclose(path_length_penalty(lengths, torch.tensor(2.0)), (expected - 2).square())
