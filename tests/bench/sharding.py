"""What each rank holds under each strategy, and what a step then costs, on 1, 2 and 4 processes of one thread each.

    python tests/bench/sharding.py [key=value ...]

It trains StyleGAN2 of 32 px with the published widths at batch 4, unless overridden.
"between" counts all tensors alive between two phases. "in a phase" counts them once the networks are whole, before there are
activations: with the gradients that data and zero have then, and without those that fsdp gathers while backward runs.
"""

import gc
import statistics
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from runs_for_tests import on_ranks
from step import SMALL, Trainer

from imago.trainer.config.load import Config, load_config

DEFAULTS = ['device=cpu', 'data.resolution=32', 'data.conditional=false', 'data.lanes=4', 'batch=4', 'micro_batch=1',
            'network.z_dim=512', 'network.w_dim=512', 'network.mapping_layers=8', 'network.channel_base=32768',
            'network.channel_max=512', 'regularizers.path_length=2', 'regularizers.d_interval=16',
            'regularizers.g_interval=4']
FSDP = ['parallel.strategy=fsdp']
WAYS = {'data': [], 'zero': ['parallel.strategy=zero'], 'fsdp': FSDP, 'fsdp, 2 replicas': [*FSDP, 'parallel.replicas=2']}
ROUNDS = 3


def measure(config: Config) -> tuple[dict[str, float], dict[str, float]]:
    """MB that this rank holds of each kind, and seconds of each phase."""
    trainer = Trainer(config)
    trainer.seconds()   # warms up
    seconds = [trainer.seconds() for _ in range(ROUNDS)]
    state = trainer.state
    networks = [parameter for network in state.networks.values() for parameter in network.parameters()]
    average = [parameter for network in state.averages.values() for parameter in network.parameters()]
    moments = [tensor for adam in state.optimizers.values() for entry in adam.state.values() for tensor in entry.values()]
    held = {'parameters': megabytes(networks), 'gradients': megabytes([p.grad for p in networks]),
            'moments': megabytes(moments), 'average': megabytes(average),
            'between': megabytes(alive())}
    with trainer.strategy.whole(*state.networks.values()):
        trainer.strategy.zero_gradients(state.networks['D'])
        held['in a phase'] = megabytes(alive())
    return held, {name: statistics.median(turn[name] for turn in seconds) for name in seconds[0]}


def alive() -> list[torch.Tensor]:
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


def megabytes(tensors: list[torch.Tensor]) -> float:
    """Return the megabytes of the storages on this rank, each counted once."""
    own = [tensor._local_tensor if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    own = [tensor for tensor in own if type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_meta]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in own}
    return sum(storages.values()) / 1e6


def main(*overrides: str) -> None:
    heading = None
    for world in (1, 2, 4):
        for way, changes in WAYS.items():
            if way != 'data' and world == 1 or 'replicas' in way and world == 2:
                continue    # the same as one above
            config = load_config(SMALL, [*DEFAULTS, *changes, *overrides])
            results = on_ranks(world, measure, config)
            held = {kind: max(result[0][kind] for result in results) for kind in results[0][0]}
            seconds = results[0][1]
            if heading is None:
                heading = f'{"ranks":5} {"strategy":17}' + ''.join(f'{kind:>12}' for kind in held)
                print(heading + '  MB on the fullest rank;' + ''.join(f'{name:>9}' for name in seconds) + '  s')
            print(f'{world:5} {way:17}' + ''.join(f'{value:12.1f}' for value in held.values()) + ' ' * 25
                  + ''.join(f'{value:9.2f}' for value in seconds.values()), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
