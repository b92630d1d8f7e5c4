"""The first test of every strategy: gradients of each phase against one process."""

from unittest import mock

import pytest
import torch
from gradients_for_tests import assert_same_gradients, gradients_of_each_phase
from runs_for_tests import on_ranks, tiny_config
from torch import nn

from imago.trainer.engine import parallel
from imago.trainer.ranks import dist


@pytest.mark.parametrize('conditional', [False, True])
def test_gradients_equal_those_of_one_process(shards, tmp_path, conditional):
    tree = {'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': conditional}
    config = tiny_config(shards, tmp_path, data=tree)
    alone = gradients_of_each_phase(config)
    assert set(alone) == {'D_main', 'D_reg', 'G_main', 'G_reg'}
    for found in on_ranks(2, gradients_of_each_phase, config):
        assert_same_gradients(found, alone, limit=1e-6, rtol=1e-5, atol=1e-8)


def overlapped(bytes_of_a_bucket, with_unused=False):
    """Return a network's averaged gradients, this rank's own norm, and the order in which layers are reached and buckets sent."""
    torch.manual_seed(dist.rank())
    inputs = torch.randn(3, 4)
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    network, events, send = nn.ModuleList([*layers, *[nn.Linear(4, 4)] * with_unused]), [], torch.distributed.all_reduce
    strategy = parallel.DataParallel()
    strategy.spread(network)
    for number, layer in enumerate(layers):
        layer.register_full_backward_hook(lambda *_, number=number: events.append(number))

    def noted(tensor, *args, **options):
        events.append('sent')
        return send(tensor, *args, **options)
    with mock.patch.object(parallel, 'BUCKET_BYTES', bytes_of_a_bucket), mock.patch('torch.distributed.all_reduce', noted):
        strategy.zero_gradients(network)
        network.requires_grad_(True)
        with strategy.last_backward(network):
            layers(inputs.requires_grad_()).square().sum().backward()
        norm, own_norm = strategy.sync_gradients(network)
    return [parameter.grad.clone() for parameter in network.parameters()], norm.item(), own_norm.item(), events


@pytest.mark.parametrize('with_unused', [False, True])
def test_gradients_are_sent_while_backward_still_runs(with_unused):
    """In many buckets or in one, the gradients are the same; those that no backward reaches are sent too, in their order."""
    one, several = (on_ranks(2, overlapped, size, with_unused) for size in (1 << 20, 80))    # 80: a layer
    for (gradients, norm, own_norm, events), (theirs, their_norm, their_own, many) in zip(one, several):
        assert all(torch.equal(one, two) for one, two in zip(gradients, theirs, strict=True))
        assert norm == pytest.approx(their_norm) and own_norm == pytest.approx(their_own)
        assert events.count('sent') == 1 and many.count('sent') == 4 + with_unused
        assert (many.index('sent') < many.index(0)) != with_unused
    assert one[0][2] != one[1][2]
