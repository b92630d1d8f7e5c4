import torch

from imago.trainer.config.load import EMAConfig, OptimConfig
from imago.trainer.engine.ema import ema_decay, update_ema
from imago.trainer.engine.optim import Adam, set_rates
from imago.trainer.engine.randomness import draw, seed_for

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
    config = OptimConfig(betas=(0.5, 0.99))
    adam = Adam(torch.nn.Linear(1, 1), config)
    group = adam.param_groups[0]
    set_rates(adam, 0.002, config, 0, 16)
    assert group['lr'] == 0.002 * 16 / 17 and group['betas'] == (0.5 ** (16 / 17), 0.99 ** (16 / 17))
    set_rates(adam, 0.002, config, 0, None)
    assert group['lr'] == 0.002 and group['betas'] == (0.5, 0.99)
