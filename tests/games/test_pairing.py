"""Where a loss pairs reals and fakes, both of a pair have the same class, so that D's opinion of classes cancels."""

from math import log, sqrt

import pytest
import torch
from families_for_tests import config_of
from runs_for_tests import game_of
from torch import nn

from imago.trainer.data.shards import open_dataset
from imago.trainer.models import r3gan
from imago.trainer.ranks import dist
from imago.trainer.start import open_stream


class ByClass(nn.Module):
    """A discriminator with one logit per class; with `slope`, the logit is multiplied by the sum of the picture."""

    def __init__(self, slope=False):
        super().__init__()
        self.slope, self.of_class = slope, nn.Parameter(torch.tensor([[-7.0], [0.5], [20.0]]))

    def forward(self, images, c):
        return c @ self.of_class * (images.flatten(1).sum(dim=1, keepdim=True) if self.slope else 1)


def phase_and_micro_batches(shards, folder, D, phase, **changes):
    """A phase of a conditional R3GAN with another D, and the first step's micro-batches for it."""
    dist.init('cpu')
    config = config_of('r3gan', shards, folder, **changes)
    dataset = open_dataset(config.data.path)
    game = game_of(config)
    game.state.networks['D'] = D
    batch = next(open_stream(config, dataset, game.plan, 0))
    phase = {phase.name: phase for phase in game.phases()}[phase]
    return phase, game.micro_batches(batch, phase)


PAIRED = {'loss': {'name': 'relativistic', 'd_steps': 2}}


@pytest.mark.parametrize('name, key', [('D_main', 'loss/D'), ('G_main', 'loss/G')])
def test_offsets_of_classes_cancel_in_pairs(wide_shards, tmp_path, name, key):
    phase, micro_batches = phase_and_micro_batches(wide_shards, tmp_path, ByClass(), name, **PAIRED, regularizers={})
    assert len(micro_batches) == 4 and len({int(row.argmax()) for micro in micro_batches for row in micro.labels}) > 1
    for micro in micro_batches:
        assert torch.equal(micro.labels, micro.fake_labels)
        assert phase.loss(micro)[1][key].item() == pytest.approx(log(2))


@pytest.mark.parametrize('name, interval', [('D_main', 1), ('D_reg', 2)])
def test_r2_sees_the_classes_that_r1_sees(wide_shards, tmp_path, name, interval):
    """R1 and R2 are equal where the slope depends on the class alone."""
    phase, micro_batches = phase_and_micro_batches(wide_shards, tmp_path, ByClass(slope=True), name, **PAIRED,
                                                    regularizers={'r1': 1.0, 'r2': 1.0, 'd_interval': interval})
    for micro in micro_batches:
        found = phase.loss(micro)[1]
        assert found['penalty/r1'].item() == pytest.approx(found['penalty/r2'].item(), rel=1e-5) and found['penalty/r1'] > 0


def test_other_losses_draw_the_classes_of_fakes_apart(wide_shards, tmp_path):
    _, micro_batches = phase_and_micro_batches(wide_shards, tmp_path, ByClass(), 'D_main', loss={'name': 'hinge'})
    assert not all(torch.equal(micro.labels, micro.fake_labels) for micro in micro_batches)
    assert all(torch.equal(micro.fake_labels.argmax(dim=1), micro.draws.labels) for micro in micro_batches)


def test_r3gan_embeds_classes_as_published():
    """G's embedding keeps the variance of N(0, 1) inputs: one row of 1 among 100 classes comes out 10 times as small."""
    torch.manual_seed(0)
    G = r3gan.Generator(8, 100, (8, 8), 3)
    D = r3gan.Discriminator(100, (8, 8), 3, d_label_dim=1536)
    assert G.embed.weight.shape == (64, 100) and G.embed.weight.std().item() == pytest.approx(0.1, rel=0.03)
    assert D.embed.weight.shape == (1536, 100) and D.fc.weight.shape[0] == 1536
    assert D.embed.weight.std().item() == pytest.approx(0.1 / sqrt(1536), rel=0.03)
    assert r3gan.Discriminator(100, (8, 8), 3, label_dim=32).embed.weight.shape == (32, 100)    # as in checkpoints until now
