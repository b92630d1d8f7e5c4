"""Captured phases against uncaptured ones, by a stand-in for CUDA graphs, and what a step waits for."""

import collections

import pytest
import torch
from families_for_tests import config_of
from runs_for_tests import game_of
from tape import Tape
from torch import Tensor

from imago.trainer.data.shards import open_dataset
from imago.trainer.engine import phase as phases
from imago.trainer.engine.graphs import WARM_UPS, Graphs, Scalars, each_tensor, tensors_of
from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.phase import run_phase
from imago.trainer.engine.results import NonFiniteGradient, Unread
from imago.trainer.games import GAMES, make_graphs
from imago.trainer.games.latent import Latent
from imago.trainer.start import open_stream

STEPS = WARM_UPS + 3


def recorder(game):
    """Do what CudaRecorder does. A capture runs nothing, so what the tape's first run changed is put back."""
    def record(run):
        networks = list(game.state.networks.values())
        kept = [(tensor, tensor.clone()) for network in networks for tensor in network.buffers()]
        kept += [(p.grad, p.grad.clone()) for network in networks for p in network.parameters() if p.grad is not None]
        generator = torch.get_rng_state()
        with Tape() as tape:
            outputs = run()
        for tensor, before in kept:
            tensor.copy_(before)
        torch.set_rng_state(generator)
        return tape.replay, outputs
    return record


def poisoned(micro_batch):
    """Fill a micro-batch, which has been used, with what would show."""
    for tensor in tensors_of(micro_batch):
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)


def trained(config, graphs_of=lambda game: None, poison=False):
    """Return the state's tensors after STEPS steps, and the values that phases found."""
    strategy = Strategy()
    game = game_of(config, strategy)
    state, graphs, unread = game.state, graphs_of(game), Unread()
    stream, found = open_stream(config, open_dataset(config.data.path), game.plan, 0), []
    for _ in range(STEPS):
        batch = next(stream)
        game.begin_step()
        for phase in game.phases():
            micro_batches = each_tensor(game.micro_batches(batch, phase), Tensor.clone)
            unread.add(run_phase(phase, micro_batches, state, config.seed, strategy, graphs))
            if poison:
                for micro_batch in micro_batches:
                    poisoned(micro_batch)
        found += [(each.phase, each.means, each.gradient_norm) for each in unread.read()]
        state.advance(game.batch)
    tensors = [tensor for network in state.networks.values() for tensor in network.state_dict().values()]
    return [tensor.clone() for tensor in (*tensors, *state.memory.values())], found


RAMPS = {'regularizers': {'r1': {'start': 5.0, 'end': 1.0, 'kimg': 0.1}, 'd_interval': 1, 'lecam': 0.1},
         'augment': {'name': 'ada', 'p': {'start': 0.1, 'end': 0.9, 'kimg': 0.05}}}


@pytest.mark.parametrize('family, changes', [
    ('stylegan2', {}), ('stylegan2', RAMPS), ('stylegan2', {'augment': {'name': 'ada', 'speed_kimg': 0.01, 'interval': 2}}),
    ('r3gan', {}), ('biggan', {}), ('sngan', {}), ('mad-gan', {}), ('began', {})], ids=str)
def test_a_captured_phase_has_the_same_bits(wide_shards, tmp_path, monkeypatch, family, changes):
    """Inputs are poisoned once they were used, and numbers of schedules change: a graph must have neither in it."""
    config = config_of(family, wide_shards, tmp_path, **changes)
    monkeypatch.setattr(Scalars, 'kept_on', ('cpu',))
    expected, told = trained(config)
    found, theirs = trained(config, lambda game: Graphs(required=True, record=recorder(game)), poison=True)
    assert theirs == told
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one, two)


class Waits:
    """Counts by kind what would wait for a GPU: reading a tensor's value, and copies to the host."""

    NAMES = ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', '__index__')

    def __init__(self, monkeypatch, state):
        # what decides the size of the maps lies on the host wherever the networks are
        on_host = [buffer for network in state.networks.values() for name, buffer in network.named_buffers() if name == 'lod']
        self.counts = collections.Counter()
        for name in self.NAMES:
            own = getattr(Tensor, name)

            def counting(tensor, *args, own=own, name=name, **options):
                self.counts[name] += not any(tensor is each for each in on_host)
                return own(tensor, *args, **options)
            monkeypatch.setattr(Tensor, name, counting)


@pytest.mark.parametrize('family, changes', [('stylegan2', {}), ('stylegan2', RAMPS), ('pggan', {}), ('r3gan', {}), ('biggan', {})],
                         ids=str)
def test_no_step_waits_for_a_device(wide_shards, tmp_path, monkeypatch, family, changes):
    config = config_of(family, wide_shards, tmp_path, **changes)
    strategy, unread = Strategy(), Unread()
    game = game_of(config, strategy)
    batch = next(open_stream(config, open_dataset(config.data.path), game.plan, 0))
    monkeypatch.setattr(phases, 'reads_at_once', lambda tensor: False)
    for optimizer in game.state.optimizers.values():
        optimizer.step = lambda: None      # fused steps count on the device; those of a CPU read their counts
    waits = Waits(monkeypatch, game.state)
    for _ in range(2):
        game.begin_step()      # it reads memory that lies on the host
        before = waits.counts.copy()
        for phase in game.phases():
            unread.add(run_phase(phase, game.micro_batches(batch, phase), game.state, config.seed, strategy))
        assert waits.counts - before == collections.Counter()
        game.state.advance(game.batch)
    before = waits.counts.copy()
    unread.read()
    assert waits.counts - before == collections.Counter(tolist=1)


def test_a_bad_gradient_is_told_when_it_is_read(wide_shards, tmp_path, monkeypatch):
    """On a GPU nobody looks before: the message is the same, and other results before it are kept."""
    config = config_of('stylegan2', wide_shards, tmp_path)
    strategy, unread = Strategy(), Unread()
    game = game_of(config, strategy)
    batch = next(open_stream(config, open_dataset(config.data.path), game.plan, 0))
    monkeypatch.setattr(phases, 'reads_at_once', lambda tensor: False)
    game.begin_step()
    first = game.phases()[0]
    unread.add(run_phase(first, game.micro_batches(batch, first), game.state, config.seed, strategy))
    with torch.no_grad():
        next(game.D.parameters()).fill_(torch.nan)
    game.state.advance(game.batch)
    unread.add(run_phase(first, game.micro_batches(batch, first), game.state, config.seed, strategy))
    with pytest.raises(NonFiniteGradient, match=f'phase D_main at {game.batch} images: .* on rank 0; the same command'):
        unread.read()


def test_a_capture_that_fails_is_told_once_and_training_goes_on(wide_shards, tmp_path, capsys):
    config = config_of('stylegan2', wide_shards, tmp_path)

    def record(run):
        raise RuntimeError('operation not permitted when stream is capturing\nmore')
    expected, _ = trained(config)
    found, _ = trained(config, lambda game: Graphs(record=record))
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert capsys.readouterr().out == ('graphs: phase D_main cannot be captured (operation not permitted when stream is capturing), '
                                       'so that none is\n')
    with pytest.raises(RuntimeError, match='graphs=on: phase D_main cannot be captured .* use graphs=off'):
        trained(config, lambda game: Graphs(required=True, record=record))


@pytest.mark.parametrize('family, changes, device, reason', [
    ('stylegan2', {}, 'cpu', 'there is no CUDA device'),
    ('pggan', {}, 'cuda', 'with growth, networks change'),
    ('stylegan2', {'compile': True}, 'cuda', 'compile=true captures phases'),
    ('stylegan2', {'loss': {'reuse_fakes': True}}, 'cuda', 'loss.reuse_fakes=true joins two phases')])
def test_what_cannot_be_captured_is_refused_with_the_reason(wide_shards, tmp_path, family, changes, device, reason):
    config = config_of(family, wide_shards, tmp_path, graphs='on', **changes)
    with pytest.raises(ValueError, match=f'graphs=on: {reason}.*; use graphs=auto'):
        make_graphs(config, game_of(config).state, torch.device(device))
    auto = config.model_copy(update={'graphs': 'auto'})
    assert make_graphs(auto, game_of(auto).state, torch.device(device)) is None


def test_what_the_host_decides_by_stays_there(wide_shards, tmp_path):
    state = game_of(config_of('pggan', wide_shards, tmp_path)).state
    moved = state.networks['G'].to('meta')
    assert moved.lod.device.type == 'cpu' and next(moved.parameters()).device.type == 'meta'
    assert {state.memory[name].device.type for name in ('side', 'rollbacks')} == {'cpu'}


def test_what_comes_from_outside_is_not_captured_unless_asked_for(wide_shards, tmp_path, monkeypatch):
    """Neither a game whose base could be, nor networks and losses of others, as nobody knows what they read."""
    config = config_of('stylegan2', wide_shards, tmp_path)
    state, device = game_of(config).state, torch.device('cuda')
    monkeypatch.setattr('imago.trainer.engine.graphs.CudaRecorder', lambda: None)
    assert make_graphs(config, state, device) is not None

    class Mine(Latent):
        """Reads its own numbers."""
    with monkeypatch.context() as patch:
        patch.setitem(GAMES, 'latent', Mine)
        assert make_graphs(config, state, device) is None
        with pytest.raises(ValueError, match='graphs=on: game.name=latent does not say'):
            make_graphs(config.model_copy(update={'graphs': 'on'}), state, device)
    with monkeypatch.context() as patch:
        patch.setattr(type(state.networks['D']), '__module__', 'theirs')
        assert make_graphs(config, state, device) is None
        assert make_graphs(config.model_copy(update={'graphs': 'on'}), state, device) is not None
    assert make_graphs(config.model_copy(update={'plugins': ('theirs',)}), state, device) is None
    assert make_graphs(config.model_copy(update={'graphs': 'off'}), state, device) is None
