"""Tiny runs, and several real processes to run them in."""

import multiprocessing
import os
import resource
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed.tensor import DTensor

from imago.trainer.config.load import Config, parse_config
from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.state import make_state
from imago.trainer.games import make_game
from imago.trainer.games.game import Game
from imago.trainer.models import layers


def tiny_tree(data: Path, run_dir: Path) -> dict:
    """A configuration that divides over 1 to 4 ranks and has all four phases within two steps."""
    return {
        'run_dir': str(run_dir), 'device': 'cpu', 'total_kimg': 0.048, 'batch': 12, 'micro_batch': 3,
        'data': {'path': str(data), 'lanes': 12, 'workers': 0},
        'network': {'z_dim': 16, 'w_dim': 16, 'mapping_layers': 2, 'channel_base': 128, 'channel_max': 16},
        'regularizers': {'r1': 1.0, 'd_interval': 2, 'path_length': 2.0, 'g_interval': 2}, 'ema': {'half_life_kimg': 0.05},
        'checkpoint': {'interval_kimg': 0.024}, 'log': {'interval_kimg': 0.012, 'grid_kimg': 0.024, 'grid': [2, 2], 'keys': True},
        'guard': {'action': 'off'},    # it looks at many more pictures than a tiny run trains on
    }


def tiny_config(data: Path, run_dir: Path, /, **changes: object) -> Config:
    return parse_config(tiny_tree(data, run_dir) | changes, 'tiny')


def write_tiny(data: Path, run_dir: Path, path: Path, /, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(tiny_tree(data, run_dir) | changes))
    return path


def game_of(config: Config, strategy: Strategy | None = None) -> Game:
    """Make the game of a new run on the CPU; without a strategy, for one process."""
    plan = config.game.plan(config, open_dataset(config.data.path).manifest)
    return make_game(config, plan, make_state(config, plan, torch.device('cpu'), strategy or Strategy()))


def train_here(config: Config) -> dict[str, torch.Tensor]:
    """Train in this process (one rank of its world) and return a copy of the whole state, flat."""
    from imago.trainer.start import prepare
    from imago.trainer.train import train
    run = prepare(config)
    train(run)
    return {name: whole(tensor).clone() for name, tensor in flat(run.state.tree()).items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that is spread over the ranks. All ranks call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def flat(tree: dict, prefix: str = '') -> dict[str, torch.Tensor]:
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return leaves


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tree = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    dcp.load(tree, checkpoint_id=path, no_dist=True)
    return tree


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not bitwise equal."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest |a - b| / max |a| over all tensors."""
    assert one.keys() == other.keys()
    scale = {name: tensor.abs().max().clamp(min=1e-12) for name, tensor in one.items()}
    return max(((one[name] - other[name]).abs().max() / scale[name]).item() for name in one)


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside the block, networks and states are made in float64 and compute in it, where they otherwise have float32."""
    usual = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'float32', torch.float64)
        patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
        patch.setitem(layers.DTYPES, 'none', torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(usual)


@contextmanager
def file_size_limit(most: int) -> Iterator[None]:
    """Writing past `most` bytes of a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def on_ranks(world: int, work: Callable, *arguments: object) -> list:
    """`work(*arguments)` in `world` real processes joined by gloo; their results in order of rank."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['imago.trainer.train'])
    with ProcessPoolExecutor(world, context) as pool:
        return [future.result() for future in
                [pool.submit(_as_rank, rank, world, port, work, arguments) for rank in range(world)]]


def _as_rank(rank: int, world: int, port: int, work: Callable, arguments: tuple) -> object:
    from imago.trainer.ranks import dist
    torch.set_num_threads(1)
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(world), 'LOCAL_WORLD_SIZE': str(world),
                   'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'OMP_NUM_THREADS': '1'}
    dist.init('cpu')
    try:
        return work(*arguments)
    finally:
        dist.shutdown()
