"""What the host pays for each operation that it gives to a device: the `--launch-us` of `imago cost`.

    python tests/bench/host.py [--device cuda] [key=value ...]

It times the phases of `stylegan2-512` and divides by the operations that `imago cost` counts. All layers are there, but of 4
channels at 64 px and for one picture, so that the device has next to nothing to do; one thread works on a CPU. Everything that
the host does counts: Python, views, autograd, the launch itself, and Adam.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import torch
from step import Trainer

from imago.trainer.config.load import load_config
from imago.trainer.data.manifest import Manifest
from imago.trainer.plan.work import count_work
from imago.trainer.ranks import dist

TINY = ['data.resolution=64', 'data.lanes=1', 'batch=1', 'micro_batch=1', 'network.channel_base=64', 'network.channel_max=4',
        'network.z_dim=16', 'network.w_dim=16']
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('overrides', nargs='*', metavar='key=value')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    arguments = parser.parse_args()
    dist.init(arguments.device)
    torch.set_num_threads(1)
    config = load_config('stylegan2-512', TINY + arguments.overrides)
    work = count_work(config, Manifest(config.data.size(None), 3, 'webp', (), (), ()), config.micro_batch)
    counts = {phase.name: len(phase.micro) for phase in work.phases}
    trainer = Trainer(config)
    rounds = [trainer.seconds() for _ in range(ROUNDS + 1)][1:]     # the first one warms up
    total = 0.0
    for phase in trainer.phases:
        seconds = statistics.median(found[phase.name] for found in rounds)
        total += seconds / phase.interval
        print(f'{phase.name:8} {counts[phase.name]:6} operations {1e3 * seconds:8.2f} ms '
              f'{1e6 * seconds / counts[phase.name]:6.1f} us an operation')
    operations = sum(counts[phase.name] / phase.interval for phase in trainer.phases)
    print(f'a step   {operations:6.0f} operations {1e3 * total:8.2f} ms {1e6 * total / operations:6.1f} us an operation')


if __name__ == '__main__':
    main()
