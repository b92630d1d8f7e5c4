import psutil
import pytest
import torch
from runs_for_tests import flat, game_of, tiny_config

from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.randomness import draw
from imago.trainer.engine.state import make_networks
from imago.trainer.games.latent import MicroBatch
from imago.trainer.models import num_parameters
from imago.trainer.plan.preflight import (
    check_memory,
    describe_needs,
    phase_activations,
    rank_bytes,
    saved_bytes,
    state_bytes,
    tensor_bytes,
)


def test_estimates_are_what_a_real_run_holds(shards, tmp_path):
    config = tiny_config(shards, tmp_path / 'run', micro_batch=4)
    game = game_of(config)
    state, plan = game.state, game.plan
    counters = 8 * len(state.tree()['opt_G']) * 8 + tensor_bytes(state.guard)
    estimate, held = state_bytes(plan, state.networks), tensor_bytes(state.tree())
    assert 0 <= held - estimate <= counters

    draws = draw(0, 0, '', 4, z_dim=16, num_ws=6, style_mixing=0.0, class_counts=())
    micro = MicroBatch(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, 0), draws, torch.zeros(4, 0))
    estimates = dict(phase_activations(config, plan, make_networks(plan)))
    for phase in game.phases():
        for name, network in state.networks.items():
            network.requires_grad_(name in phase.trains)
        assert estimates[phase.name] == saved_bytes(lambda: phase.loss(micro)) > 0, phase.name
    assert sum(tensor.numel() for name, tensor in flat(state.tree()).items() if name.startswith('opt_G.') and name.endswith('exp_avg')) \
        == num_parameters(game.G)


def plan_and_networks(config):
    plan = config.game.plan(config, open_dataset(config.data.path).manifest)
    return plan, make_networks(plan)


def test_a_rank_of_fsdp_keeps_its_part_and_for_a_phase_all(shards, tmp_path):
    plan, networks = plan_and_networks(tiny_config(shards, tmp_path))
    everything, gathered = rank_bytes(tiny_config(shards, tmp_path), plan, networks, 4)
    assert gathered == 0
    own, gathered = rank_bytes(tiny_config(shards, tmp_path, parallel={'strategy': 'fsdp', 'replicas': 2}), plan, networks, 4)
    sizes = [4 * num_parameters(network) for network in networks.values()]
    assert own == everything // 2 and gathered == sum(sizes) + 2 * max(sizes)


def test_a_rank_of_zero_keeps_a_part_of_the_moments(shards, tmp_path):
    plan, networks = plan_and_networks(tiny_config(shards, tmp_path))
    own, gradients = rank_bytes(tiny_config(shards, tmp_path, parallel={'strategy': 'zero'}), plan, networks, 4)
    sizes = [4 * num_parameters(network) for network in networks.values()]
    everything, _ = rank_bytes(tiny_config(shards, tmp_path), plan, networks, 4)
    assert everything - own == 3 * sum(sizes) - 3 * sum(sizes) // 4 and gradients == max(sizes)


def test_networks_larger_than_the_machine_are_refused_before_they_are_made(shards, tmp_path, monkeypatch):
    config = tiny_config(shards, tmp_path / 'run')
    plan, networks = plan_and_networks(config)
    needed = 2 * tensor_bytes(networks['G'].state_dict()) + tensor_bytes(networks['D'].state_dict())
    for ranks, total, refused in ((1, needed, False), (1, needed - 1, True), (2, 2 * needed, False), (2, 2 * needed - 1, True)):
        monkeypatch.setenv('LOCAL_WORLD_SIZE', str(ranks))
        monkeypatch.setattr(psutil, 'virtual_memory', lambda total=total: type('Memory', (), {'total': total}))
        if refused:
            with pytest.raises(ValueError, match=f'on {ranks} ranks, and this machine has'):
                check_memory(config, plan)
        else:
            check_memory(config, plan)


def test_the_largest_networks_that_can_be_asked_for_take_nothing_to_refuse_or_describe(shards, tmp_path):
    """Each of them would take hundreds of GB."""
    widths = {'z_dim': 65536, 'w_dim': 65536, 'mapping_layers': 64, 'channel_base': 1 << 24, 'channel_max': 65536}
    config, manifest = tiny_config(shards, tmp_path / 'run', network=widths), open_dataset(shards).manifest
    with pytest.raises(ValueError, match=r'many parameters \(G 502,517,.*, D .*\): .* set smaller widths'):
        check_memory(config, config.game.plan(config, manifest))
    before = psutil.Process().memory_info().rss
    assert 'parameters    G 502,517' in (told := describe_needs(config, manifest, 1, 'cpu'))
    assert told.splitlines()[-1].startswith('does not fit  memory: lower micro_batch')
    assert psutil.Process().memory_info().rss - before < 2e9
