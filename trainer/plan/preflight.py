"""What a run will need, before it starts: parameters, memory and disk."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.config.load import Config
from trainer.data.manifest import Manifest
from trainer.engine.parallel import parts_of
from trainer.engine.phase import MicroBatch, Phase
from trainer.engine.randomness import draw
from trainer.engine.state import SCALARS, TrainState, make_networks
from trainer.games.recipe import Recipe
from trainer.models import num_parameters
from trainer.runs.run_folder import nearest


def describe_run(config: Config, manifest: Manifest, world: int) -> str:
    """Parameter counts, and estimates of memory (a rank) and disk, as lines for people."""
    with torch.device('meta'):
        G, D = make_networks(config, manifest)
    kept = state_bytes(G, D)
    own, whole = rank_bytes(config, G, D, world)
    on_host = kept // parts_of(config.parallel, world)
    phase, activations = max(phase_activations(config, manifest, G, D), key=lambda entry: entry[1])
    height, width = G.resolution
    return '\n'.join([
        f'\n# pictures      {height} x {width}, {manifest.num_samples} in {len(manifest.shards)} shards, '
        f'{G.c_dim or "no"} classes',
        f'# parameters    G {num_parameters(G):,}   D {num_parameters(D):,}',
        f'# memory        {(own + whole + activations) / 1e9:.2f} GB a rank: state and gradients {own / 1e9:.2f}, '
        f'whole networks {whole / 1e9:.2f}, activations {activations / 1e9:.2f} ({phase}, '
        f'micro_batch={full_size_micro_batch(config, G.resolution)})',
        f'#               and {on_host / 1e9:.2f} on the host while a checkpoint is written, besides what the libraries take',
        f'# disk          {(config.checkpoint.keep + 1) * kept / 1e9:.2f} GB for {config.checkpoint.keep} checkpoints '
        'and one being written', ''])


def rank_bytes(config: Config, G: nn.Module, D: nn.Module, world: int) -> tuple[int, int]:
    """What a rank keeps, state and gradients, and what only a phase has: of FSDP what it gathers, of ZeRO gradients."""
    parts, sizes = parts_of(config.parallel, world), [4 * num_parameters(network) for network in (G, D)]
    if config.parallel.strategy == 'zero' and world > 1:
        # of two moments, and of the copy of the parameters that is stepped, a part
        return state_bytes(G, D) - 2 * sum(sizes) + 3 * sum(sizes) // world, max(sizes)
    # whole networks, and of the one that learns the gradients and their copy to send
    gathered = sum(sizes) + 2 * max(sizes) if parts > 1 else 0
    return (state_bytes(G, D) + sum(sizes)) // parts, gathered


def state_bytes(G: nn.Module, D: nn.Module) -> int:
    """Weights, Adam's two moments of each, and G's EMA; without the counters."""
    return 2 * tensor_bytes(G.state_dict()) + tensor_bytes(D.state_dict()) + 8 * (num_parameters(G) + num_parameters(D))


def phase_activations(config: Config, manifest: Manifest, G: nn.Module, D: nn.Module) -> list[tuple[str, int]]:
    """Bytes that each phase keeps for its backward pass. Of networks that grow: at their full size."""
    n = full_size_micro_batch(config, G.resolution)
    sizes = []
    with without_content(config, manifest, G, D, n) as (phases, micro):
        for phase in phases:
            for network in (G, D):
                network.requires_grad_(network is phase.network)
            sizes.append((phase.name, saved_bytes(lambda: phase.loss(micro))))
    return sizes


@contextmanager
def without_content(config: Config, manifest: Manifest, G: nn.Module, D: nn.Module,
                    n: int) -> Iterator[tuple[list[Phase], MicroBatch]]:
    """The recipe's phases and a micro-batch of `n`, on tensors that have a shape and no content: nothing is computed.

    G and D are changed for good. Networks that grow are at their full size.
    """
    # compiled code cannot run on tensors without content
    eager = config.model_copy(update={'compile': False, 'growth': None})
    with FakeTensorMode():
        for network in (G, D):
            network._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
            for module in network.modules():
                if 'lod' in module._buffers:    # read by Python: at full size, where networks grow
                    module.lod = torch.tensor(0.0)
        state = TrainState(G, D, G, None, None, {name: torch.zeros(()) for name in SCALARS})
        draws = draw(0, 0, '', n, z_dim=G.z_dim, num_ws=G.num_ws, style_mixing=0.0, class_counts=())
        labels = torch.zeros(n, G.c_dim)
        micro = MicroBatch(torch.zeros(n, manifest.channels, *G.resolution, dtype=torch.uint8), labels, draws, labels)
        yield Recipe(eager, manifest, state).phases(), micro


def full_size_micro_batch(config: Config, resolution: tuple[int, int]) -> int:
    at_sides = config.growth.micro_batch if config.growth else {}
    return at_sides.get(min(resolution), config.micro_batch)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of the storages that `forward` leaves for the backward pass, parameters left out."""
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


def check_memory(config: Config, manifest: Manifest) -> None:
    """ValueError, before any of it is taken, if the new networks of this machine's ranks are larger than its memory."""
    with torch.device('meta'):
        G, D = make_networks(config, manifest)
    ranks, there = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), psutil.virtual_memory().total
    needed = ranks * (2 * tensor_bytes(G.state_dict()) + tensor_bytes(D.state_dict()))
    if needed > there:
        raise ValueError(f'G has {num_parameters(G):,} parameters and D {num_parameters(D):,}: with the average they take '
                         f'{needed / 1e9:.1f} GB on {ranks} ranks, and this machine has {there / 1e9:.1f} GB; set smaller '
                         'widths of the network')


def check_disk(run_dir: Path, state: TrainState) -> None:
    """ValueError if the disk cannot take two checkpoints: the newest, and the next one being written."""
    free, needed = shutil.disk_usage(nearest(run_dir)).free, 2 * state_bytes(state.G, state.D)
    if free < needed:
        raise ValueError(f'run_dir={run_dir}: {free / 1e9:.2f} GB are free, two checkpoints take {needed / 1e9:.2f} GB; '
                         'make room or choose another run_dir')


def tensor_bytes(tree: object) -> int:
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    children = tree.values() if isinstance(tree, dict) else tree
    return sum(tensor_bytes(child) for child in children)
