"""What a training step of StyleGAN2 costs with each kind of kernels, in one run, and where its time goes.

    python tests/bench/step.py [--device cuda] [--profile] [--forms fused reference ...] [key=value ...]

64 px, channel base 4096, at most 128 channels, batch 8, R1 every 16 steps, path length every 4, unless overridden.
The forms are: fused, which training uses; unfused, only the kernels upfirdn2d and bias_act; reference, the best eager forms of
plain PyTorch; usual, plain PyTorch with upfirdn2d by its definition (zeros put in, padded, convolved) and all maps NCHW;
compiled, which is fused with `compile: true`; reuse, which is fused with `loss.reuse_fakes: true`; bf16, which is fused with all
blocks but the coarsest in bf16.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from imago import kernels
from imago.trainer.config.load import Config, load_config
from imago.trainer.data.manifest import Manifest, Shard
from imago.trainer.data.stream import Batch
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.phase import Phase, run_phase
from imago.trainer.engine.state import make_state
from imago.trainer.games import make_game, make_graphs
from imago.trainer.models import stylegan2
from imago.trainer.ranks import dist
from imago.trainer.ranks.precision import set_precision

SMALL = Path(__file__).with_name('stylegan2-32.yaml')
DEFAULTS = ['data.resolution=64', 'data.conditional=false', 'data.lanes=1', 'batch=8', 'micro_batch=8', 'network.z_dim=512',
            'network.w_dim=512', 'network.mapping_layers=8', 'network.channel_base=4096', 'network.channel_max=128',
            'regularizers.path_length=2', 'regularizers.d_interval=16', 'regularizers.g_interval=4']
ROUNDS = 7
CLASSES = 1000   # of a configuration with classes


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Compute epilogues and modulation from their parts."""
    with contextlib.ExitStack() as stack:
        for module in ('epilogue', 'modulate'):
            stack.enter_context(mock.patch.object(sys.modules[f'imago.kernels.{module}'], 'serves', lambda device: False))
        yield


@contextlib.contextmanager
def usual() -> Iterator[None]:
    """Compute upfirdn2d as most people write it."""
    def by_definition(x, taps, up, down, padding):
        n, c, h, w = x.shape
        x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up[0] - 1, 0, 0, 0, up[1] - 1)).reshape(n, c, h * up[1], w * up[0])
        x = F.conv2d(F.pad(x, padding), taps.flip([0, 1]).to(x.dtype).expand(c, 1, -1, -1), groups=c)
        return x[:, :, ::down[1], ::down[0]]
    with (kernels.reference_path(), mock.patch.object(sys.modules['imago.kernels.upfirdn2d'], '_torch_upfirdn2d', by_definition),
          mock.patch.object(stylegan2, 'as_maps', lambda x, dtype: x.to(dtype))):
        yield


FORMS = {'fused': contextlib.nullcontext, 'unfused': unfused, 'reference': kernels.reference_path, 'usual': usual,
         'compiled': contextlib.nullcontext, 'reuse': contextlib.nullcontext, 'bf16': contextlib.nullcontext}
CHANGES = {'compiled': ['compile=true'], 'reuse': ['loss.reuse_fakes=true'],
           'bf16': ['network.low_precision=bf16', 'network.low_precision_blocks=10']}


class Trainer:
    """Steps on pictures of noise."""

    def __init__(self, config: Config) -> None:
        set_precision(dist.device().type, **config.precision.model_dump())
        classes = tuple(map(str, range(CLASSES if config.data.conditional else 0)))
        manifest = Manifest(config.data.resolution, 3, 'webp', classes, (1,) * len(classes), (Shard('none.tar', 0, 1, 1, '0' * 64),))
        self.config, self.strategy, self.plan = config, make_strategy(config.parallel), config.game.plan(config, manifest)
        self.state = make_state(config, self.plan, dist.device(), self.strategy)
        self.game = make_game(config, self.plan, self.state)
        self.game.begin_step()
        self.phases, self.graphs = self.game.phases(), make_graphs(config, self.state, dist.device())
        images = torch.randint(256, (config.batch, 3, *config.data.resolution), dtype=torch.uint8, device=dist.device())
        labels = torch.zeros(config.batch, dtype=torch.int64, device=dist.device())
        own = slice(dist.rank() * config.batch // dist.world_size(), (dist.rank() + 1) * config.batch // dist.world_size())
        self.batch = Batch({'image': images[own]}, labels[own], [], 0, [], dist.rank(), dist.world_size())

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase."""
        return {phase.name: self.time(phase) for phase in self.phases}

    def time(self, phase: Phase) -> float:
        synchronize()
        began = time.perf_counter()
        self.run(phase)
        synchronize()
        return time.perf_counter() - began

    def run(self, phase: Phase) -> None:
        run_phase(phase, self.game.micro_batches(self.batch, phase), self.state, 0, self.strategy, self.graphs)


def synchronize() -> None:
    if dist.device().type == 'cuda':
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('overrides', nargs='*', metavar='key=value')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--forms', nargs='+', default=['fused', 'unfused', 'reference', 'usual'], choices=FORMS)
    parser.add_argument('--profile', action='store_true', help='where the time of the first form goes')
    arguments = parser.parse_args()
    dist.init(arguments.device)
    trainers = {form: Trainer(load_config(SMALL, DEFAULTS + CHANGES.get(form, []) + arguments.overrides))
                for form in arguments.forms}
    times = {form: [] for form in trainers}
    for turn in range(ROUNDS + 1):  # the forms take turns; the first round warms up
        for form, trainer in trainers.items():
            with FORMS[form]():
                seconds = trainer.seconds()
            if turn:
                times[form].append(seconds)
    print(f'{"":10} {"".join(f"{phase.name:>9}" for phase in trainer.phases)}  ms a step, img/s')
    baseline = None
    for (form, rounds), trainer in zip(times.items(), trainers.values()):
        medians = {phase.name: statistics.median(seconds[phase.name] for seconds in rounds) for phase in trainer.phases}
        step = sum(medians[phase.name] / phase.interval for phase in trainer.phases)
        baseline = baseline or step
        print(f'{form:10} {"".join(f"{1e3 * value:9.1f}" for value in medians.values())}  {1e3 * step:7.1f}  '
              f'{trainer.config.batch / step:7.1f}   {step / baseline:.2f} times the first')
    if arguments.profile:
        print_profile(trainers[arguments.forms[0]], FORMS[arguments.forms[0]])


def print_profile(trainer: Trainer, form) -> None:
    """Print a profile of 16 steps, in which R1 comes once and path length four times."""
    with form(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for phase in trainer.phases:
            for _ in range(max(16 // phase.interval, 1)):
                trainer.time(phase)
    key = 'self_cuda_time_total' if dist.device().type == 'cuda' else 'self_cpu_time_total'
    print(profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=50))


if __name__ == '__main__':
    main()
