"""This module tells before a run starts what it will need: parameters, memory and disk."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from imago.trainer.config.division import parts_of
from imago.trainer.config.duration import in_words
from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.data.locations import masked
from imago.trainer.data.manifest import Manifest
from imago.trainer.data.stream import Batch
from imago.trainer.engine.phase import only_trained
from imago.trainer.engine.state import TrainState, make_networks
from imago.trainer.games import make_game
from imago.trainer.games.game import Game
from imago.trainer.models import num_parameters
from imago.trainer.ranks.device import describe_device, memory_of
from imago.trainer.runs.run_folder import nearest


def describe_run(config: Config, plan: Plan, manifest: Manifest, networks: dict[str, nn.Module], kind: str) -> list[str]:
    """Describe a run in lines for people. kind: of its device, see `check_device`."""
    height, width = plan.resolution
    given = f'conditions of {plan.condition_shape[0]} values' if plan.condition_shape else \
        f'{len(plan.class_names)} classes' if plan.class_names else 'no classes'
    return [f'device        {describe_device(kind)}',
            f'pictures      {manifest.num_samples} pictures of {masked(config.data.path)}, shown at {height} x {width}, {given}',
            f'game          {config.game.name}, network {config.network.name}, loss {config.loss.name}, batch {config.batch}',
            'parameters    ' + '   '.join(f'{name} {num_parameters(network):,}' for name, network in networks.items()),
            f'ends          at {config.total_kimg:g} kimg' + (
                f', or after {in_words(config.stop_after)} of training (stop_after); the same command then goes on'
                if config.stop_after else '')]


def describe_needs(config: Config, manifest: Manifest, world: int, kind: str) -> str:
    """Describe the run, and estimate the memory (a rank) and the disk that it needs; the last line says whether it fits here."""
    plan = config.game.plan(config, manifest)
    with torch.device('meta'):
        networks = make_networks(plan)
    lines = describe_run(config, plan, manifest, networks, kind)
    kept = state_bytes(plan, networks)
    own, whole = rank_bytes(config, plan, networks, world)
    phase, activations = max(phase_activations(config, plan, networks), key=lambda entry: entry[1])
    memory, disk = own + whole + activations, (config.checkpoint.keep + 1) * kept
    there, free = memory_of(kind), shutil.disk_usage(nearest(Path(config.run_dir))).free
    lines += [
        f'memory        {memory / 1e9:.2f} GB a rank, of {there / 1e9:.2f}: state and gradients {own / 1e9:.2f}, '
        f'whole networks {whole / 1e9:.2f}, activations {activations / 1e9:.2f} ({phase}, '
        f'micro_batch={full_size_micro_batch(config, plan.resolution)})',
        f'              and {kept // parts_of(config.parallel, world) / 1e9:.2f} GB on the host while a checkpoint is written, '
        'besides what the libraries take',
        f'disk          {disk / 1e9:.2f} GB for {config.checkpoint.keep} checkpoints and one being written, of {free / 1e9:.2f} '
        'free']
    short = [text for text, needed, had in (
        ('memory: lower micro_batch, take more ranks with parallel.strategy=fsdp, or a smaller network', memory, there),
        ('disk: lower checkpoint.keep, or choose another run_dir', disk, free)) if needed > had]
    return '\n'.join([*lines, f'does not fit  {"; ".join(short)}' if short else 'fits'])


def rank_bytes(config: Config, plan: Plan, networks: dict[str, nn.Module], world: int) -> tuple[int, int]:
    """Return the bytes that a rank keeps, and those that it has only during a phase.

    It keeps state and gradients. Only during a phase it has, under FSDP, what it gathers and, under ZeRO, gradients.
    """
    parts, of_players = parts_of(config.parallel, world), {}
    for name, spec in plan.networks.items():    # networks of one player may step together
        of_players[spec.player] = of_players.get(spec.player, 0) + 4 * num_parameters(networks[name])
    total, trained = sum(of_players.values()), max(of_players.values())
    if config.parallel.strategy == 'zero' and world > 1:
        # a rank has its part of the two moments, and of the copy of the parameters that is stepped
        return state_bytes(plan, networks) - 2 * total + 3 * total // world, trained
    # FSDP gathers all networks, and has the gradients of those that learn, with a copy to send
    gathered = total + 2 * trained if parts > 1 else 0
    return (state_bytes(plan, networks) + total) // parts, gathered


def state_bytes(plan: Plan, networks: dict[str, nn.Module]) -> int:
    """Count the bytes of weights, of Adam's two moments of each, and of averages, but not of the counters."""
    weights = sum(tensor_bytes(network.state_dict()) for network in with_averages(plan, networks))
    return weights + 8 * sum(map(num_parameters, networks.values()))


def with_averages(plan: Plan, networks: dict[str, nn.Module]) -> list[nn.Module]:
    """Return the networks, and a second time those that have an average."""
    return [*networks.values(), *(networks[name] for name in plan.averaged)]


def phase_activations(config: Config, plan: Plan, networks: dict[str, nn.Module]) -> list[tuple[str, int]]:
    """Return the bytes that each phase keeps for its backward pass. Networks that grow are at their full size."""
    sizes = []
    with without_content(config, plan, networks, full_size_micro_batch(config, plan.resolution)) as (game, batch):
        for phase in game.phases():
            micro, = game.micro_batches(batch, phase)
            with only_trained(phase, game.state):
                sizes.append((phase.name, saved_bytes(lambda: phase.loss(micro))))
    if not config.loss.reuse_fakes:
        return sizes
    # what D_main keeps of G stays until G_main is over
    afresh = config.model_copy(update={'loss': config.loss.model_copy(update={'reuse_fakes': False})})
    with torch.device('meta'):
        others = make_networks(plan)
    kept = dict(sizes)['D_main'] - dict(phase_activations(afresh, plan, others))['D_main']
    return [(name, size + kept * (name in ('D_reg', 'G_main'))) for name, size in sizes]


@contextmanager
def without_content(config: Config, plan: Plan, networks: dict[str, nn.Module], n: int) -> Iterator[tuple[Game, Batch]]:
    """Yield the game and a batch of `n` pictures [NCHW], on tensors that have a shape and no content: nothing is computed.

    `networks` stay without content after the block. Those that grow are at their full size.
    """
    # compiled code cannot run on tensors without content
    eager = config.model_copy(update={'compile': False, 'growth': None, 'batch': n, 'micro_batch': n})
    with FakeTensorMode():
        for network in networks.values():
            network._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
            for module in network.modules():
                if 'lod' in module._buffers:    # Python code reads this number, so that it needs content; 0 is the full size
                    module.lod = torch.tensor(0.0)
        memory = {name: torch.zeros(()) for name in plan.memory}
        state = TrainState(networks, {name: networks[name] for name in plan.averaged}, memory=memory)
        pictures = {domain: torch.zeros(n, plan.channels, *plan.resolution, dtype=torch.uint8) for domain in plan.domains}
        labels = torch.zeros(n, dtype=torch.int64)
        conditions = torch.zeros(n, *plan.condition_shape) if plan.condition_shape else None
        yield make_game(eager, plan, state), Batch(pictures, labels, [], 0, [], 0, 1, conditions, conditions)


def full_size_micro_batch(config: Config, resolution: tuple[int, int]) -> int:
    at_sides = config.growth.micro_batch if config.growth else {}
    return at_sides.get(min(resolution), config.micro_batch)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Return the bytes of the storages that `forward` leaves for the backward pass, without parameters."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
        size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del result
    return size


def check_memory(config: Config, plan: Plan) -> None:
    """Raise ValueError, before any memory is taken, if the networks of this machine's ranks are larger than its memory."""
    with torch.device('meta'):
        networks = make_networks(plan)
    ranks, there = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), psutil.virtual_memory().total
    needed = ranks * sum(tensor_bytes(network.state_dict()) for network in with_averages(plan, networks))
    if needed > there:
        counts = ', '.join(f'{name} {num_parameters(network):,}' for name, network in networks.items())
        raise ValueError(f'the networks have many parameters ({counts}): with averages they take {needed / 1e9:.1f} GB on '
                         f'{ranks} ranks, and this machine has {there / 1e9:.1f} GB; set smaller widths of the network')


def check_disk(run_dir: Path, plan: Plan, state: TrainState) -> None:
    """Raise ValueError if the disk cannot take two checkpoints: the newest, and the next one while it is written."""
    free, needed = shutil.disk_usage(nearest(run_dir)).free, 2 * state_bytes(plan, state.networks)
    if free < needed:
        raise ValueError(f'run_dir={run_dir}: {free / 1e9:.2f} GB are free, two checkpoints take {needed / 1e9:.2f} GB; '
                         'make room or choose another run_dir')


def tensor_bytes(tree: Any) -> int:
    """Return the bytes of all tensors in nested tables and sequences."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    children = tree.values() if isinstance(tree, dict) else tree
    return sum(tensor_bytes(child) for child in children)
