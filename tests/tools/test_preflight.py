import torch
from runs_for_tests import flat, tiny_config

from trainer.data.shards import open_dataset
from trainer.models import num_parameters
from trainer.parallel import Strategy
from trainer.phase import MicroBatch
from trainer.randomness import draw
from trainer.recipe import Recipe
from trainer.state import make_networks, make_state
from trainer.tools.preflight import (
    phase_activations,
    rank_bytes,
    saved_bytes,
    state_bytes,
    tensor_bytes,
)


def test_estimates_are_what_a_real_run_holds(shards, tmp_path):
    config = tiny_config(shards, tmp_path / 'run', micro_batch=4)
    manifest = open_dataset(shards).manifest
    state = make_state(config, manifest, torch.device('cpu'), Strategy())
    counters = 8 * len(state.tree()['opt_G']) * 8 + tensor_bytes(state.guard)
    estimate, held = state_bytes(state.G, state.D), tensor_bytes(state.tree())
    assert 0 <= held - estimate <= counters

    draws = draw(0, 0, '', 4, z_dim=16, num_ws=6, style_mixing=0.0, class_counts=())
    micro = MicroBatch(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, 0), draws, torch.zeros(4, 0))
    estimates = dict(phase_activations(config, manifest, *make_networks(config, manifest)))
    for phase in Recipe(config, manifest, state).phases():
        for network in (state.G, state.D):
            network.requires_grad_(network is phase.network)
        assert estimates[phase.name] == saved_bytes(lambda: phase.loss(micro)) > 0, phase.name
    assert sum(tensor.numel() for name, tensor in flat(state.tree()).items() if name.startswith('opt_G.') and name.endswith('exp_avg')) \
        == num_parameters(state.G)


def test_a_rank_of_fsdp_keeps_its_part_and_for_a_phase_all(shards, tmp_path):
    networks = make_networks(tiny_config(shards, tmp_path), open_dataset(shards).manifest)
    everything, gathered = rank_bytes(tiny_config(shards, tmp_path), *networks, 4)
    assert gathered == 0
    own, gathered = rank_bytes(tiny_config(shards, tmp_path, parallel={'strategy': 'fsdp', 'replicas': 2}), *networks, 4)
    sizes = [4 * num_parameters(network) for network in networks]
    assert own == everything // 2 and gathered == sum(sizes) + 2 * max(sizes)


def test_a_rank_of_zero_keeps_a_part_of_the_moments(shards, tmp_path):
    networks = make_networks(tiny_config(shards, tmp_path), open_dataset(shards).manifest)
    own, gradients = rank_bytes(tiny_config(shards, tmp_path, parallel={'strategy': 'zero'}), *networks, 4)
    sizes = [4 * num_parameters(network) for network in networks]
    everything, _ = rank_bytes(tiny_config(shards, tmp_path), *networks, 4)
    assert everything - own == 3 * sum(sizes) - 3 * sum(sizes) // 4 and gradients == max(sizes)
