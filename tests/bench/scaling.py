"""Weak scaling on 1 and 2 processes of one thread each, where the time goes, and what `imago cost` says of the same.

    unshare --user --map-root-user --net sh -c 'ip link set lo up && python tests/bench/scaling.py [key=value ...]'

It needs a network namespace of its own, as it counts the bytes that pass through `lo`. It trains StyleGAN2 of 64 px with 4
pictures a rank (emoji from tests/data), unless overridden; 4 ranks run for their bytes only, as they share two cores. The
machine's speeds are measured first. 1 and 2 processes take turns: times are medians, and efficiencies are those of pairs.
"""

import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed
from torch.nn import functional as F

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from runs_for_tests import on_ranks
from step import DEFAULTS, SMALL, Trainer

from imago.trainer.config.load import Config, load_config
from imago.trainer.data.shards import open_dataset
from imago.trainer.plan.cost import Cost, cost
from imago.trainer.plan.machine import Machine
from imago.trainer.plan.traffic import PASSES
from imago.trainer.plan.work import count_work
from imago.trainer.ranks import dist
from imago.trainer.start import open_stream

OWN = 4         # pictures a rank
TURNS, ROUNDS = 5, 3
SHORT, LARGE = 2 ** 5, 2 ** 24      # elements
WAYS = {'data': [], 'fsdp': ['parallel.strategy=fsdp'],
        'fsdp, 2 replicas': ['parallel.strategy=fsdp', 'parallel.replicas=2']}
COLLECTIVES = ('all_reduce', 'all_gather_into_tensor', 'reduce_scatter')


@contextmanager
def watched(seconds: Counter) -> Iterator[None]:
    """Add to `seconds` what each collective takes: waiting for the other ranks, then sending."""
    def timed(collective: Callable) -> Callable:
        def call(*arguments, **options):
            began = time.perf_counter()
            torch.distributed.barrier()
            met = time.perf_counter()
            work = collective(*arguments, **options)
            if work is not None:
                work.wait()
            seconds.update(waiting=met - began, sending=time.perf_counter() - met)
            return work
        return call
    with ExitStack() as stack:
        for name in COLLECTIVES if dist.world_size() > 1 else ():
            stack.enter_context(mock.patch.object(torch.distributed, name, timed(getattr(torch.distributed, name))))
        yield


def measure(config: Config) -> dict[str, float]:
    """Seconds of a step of this rank, and MB that a rank sends in it, averaged over 16 steps."""
    trainer = Trainer(config)
    rounds = []
    with closing(open_stream(config, open_dataset(config.data.path), trainer.plan, 0)) as data:
        for turn in range(ROUNDS + 1):      # the first one warms up
            found = Counter()
            began = time.perf_counter()
            trainer.batch = next(data).to(dist.device())
            found['data'] = time.perf_counter() - began
            for phase in trainer.phases:
                taken = Counter()
                before = sent_on_loopback()
                with watched(taken):
                    total = trainer.time(phase)
                taken['MB'] = (sent_on_loopback() - before) / dist.world_size() / 1e6
                taken['computing'] = total - taken['waiting'] - taken['sending']
                found.update({kind: value / phase.interval for kind, value in taken.items()})
            if turn:
                rounds.append(found)
    return {kind: statistics.median(found[kind] for found in rounds)
            for kind in ('data', 'computing', 'waiting', 'sending', 'MB')}


def sent_on_loopback() -> int:
    """Return the bytes on the loopback device, once all ranks have sent theirs."""
    dist.barrier()
    line = next(line for line in Path('/proc/net/dev').read_text().splitlines() if line.strip().startswith('lo:'))
    count = int(line.split(':')[1].split()[8])
    dist.barrier()
    return count


def seconds_of(work: Callable[[], object], times: int) -> float:
    """The median of `times`, after one to warm up."""
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def speeds() -> dict[str, float]:
    """Measure one thread: FLOP/s of a 3x3 convolution forward and backward, bytes/s of an addition, seconds of a tiny one."""
    maps, weight = torch.randn(OWN, 128, 32, 32, requires_grad=True), torch.randn(128, 128, 3, 3, requires_grad=True)
    large, tiny = torch.ones(LARGE), torch.ones(SHORT)
    flops = 3 * 2 * OWN * 128 * 128 * 9 * 32 * 32
    return {'flops': flops / seconds_of(lambda: F.conv2d(maps, weight, padding=1).sum().backward(), 20),
            'bandwidth': 3 * 4 * LARGE / seconds_of(lambda: torch.add(large, large, out=large), 10),
            'launch': seconds_of(lambda: [tiny + 1 for _ in range(100)], 20) / 100}


def links() -> dict[str, float]:
    """Measure two ranks: bytes/s that each sends while both sum up a large buffer, and seconds of a small message."""
    large, small = torch.ones(LARGE), torch.ones(SHORT)
    return {'inside': 4 * LARGE / seconds_of(lambda: torch.distributed.all_reduce(large), 10),
            'latency_inside': seconds_of(lambda: torch.distributed.all_reduce(small), 200) / 2}


def machine() -> Machine:
    alone, together, link = on_ranks(1, speeds)[0], on_ranks(2, speeds)[0], on_ranks(2, links)[0]
    print(f'one thread: {alone["flops"] / 1e9:.1f} GFLOP/s, {alone["bandwidth"] / 1e9:.1f} GB/s, '
          f'{alone["launch"] * 1e6:.1f} us an operation; beside another: {together["flops"] / 1e9:.1f} GFLOP/s, '
          f'{together["bandwidth"] / 1e9:.1f} GB/s; '
          f'loopback {link["inside"] / 1e9:.2f} GB/s, {link["latency_inside"] * 1e6:.0f} us a message', flush=True)
    return Machine(alone['flops'], alone['flops'], alone['flops'], alone['bandwidth'], alone['launch'], alone['launch'], link['inside'], link['inside'],
                   link['latency_inside'], link['latency_inside'])


def configure(world: int, way: str, overrides: tuple[str, ...]) -> Config:
    data = Path(__file__).parents[1] / 'data' / 'fluent-emoji'
    return load_config(SMALL, [*DEFAULTS, f'data.path={data}', 'device=cpu', 'data.workers=0', f'batch={OWN * world}',
                                f'data.lanes={OWN * world}', f'micro_batch={OWN}', *WAYS[way], *overrides])


def main(*overrides: str) -> None:
    os.environ |= {'GLOO_SOCKET_IFNAME': 'lo', 'TORCH_CPP_LOG_LEVEL': 'ERROR'}
    PASSES['reduce_scatter'] = 2    # gloo sums whole buffers up and throws the others' parts away; NCCL does not
    here = machine()
    cases = [(1, 'data'), (2, 'data'), (2, 'fsdp'), (4, 'data'), (4, 'fsdp'), (4, 'fsdp, 2 replicas')]
    configs = {case: configure(*case, overrides) for case in cases}
    found = {case: [] for case in cases}
    for turn in range(TURNS):       # they take turns: what disturbs one disturbs all
        for world, way in cases if turn == 0 else cases[:3]:
            found[world, way].append(on_ranks(world, measure, configs[world, way])[0])
    manifest = open_dataset(configs[cases[0]].data.path).manifest
    work = count_work(configs[cases[0]], manifest, OWN)
    print('ranks strategy           MB sent   model      data  computing  waiting  sending     s/kimg   model  ratio   '
          'efficiency  of the loss: computing  waiting  sending')
    steps = [sum(turn[kind] for kind in ('data', 'computing', 'waiting', 'sending')) for turn in found[cases[0]]]
    for case in cases:
        show(case, found[case], found[cases[0]], steps, cost(configs[case], work, here, 1, case[0]))


def show(case: tuple[int, str], turns: list[dict[str, float]], alone: list[dict[str, float]], steps_alone: list[float],
         model: Cost) -> None:
    world, way = case
    middle = {kind: statistics.median(turn[kind] for turn in turns) for kind in turns[0]}
    line = f'{world:5} {way:17}{middle["MB"]:10.2f}{model.sent / 1e6:8.2f}'
    if world < 4:
        steps = [sum(value for kind, value in turn.items() if kind != 'MB') for turn in turns]
        per_kimg = statistics.median(steps) / (OWN * world) * 1000
        efficiencies = sorted(one / step for one, step in zip(steps_alone, steps, strict=True))
        line += ''.join(f'{middle[kind]:{width}.3f}' for kind, width in
                        (('data', 10), ('computing', 11), ('waiting', 9), ('sending', 9)))
        line += f'{per_kimg:11.1f}{model.per_kimg:8.1f}{per_kimg / model.per_kimg:7.2f}'
        if world > 1:
            slower = statistics.median(turn['computing'] - one['computing'] for turn, one in zip(turns, alone, strict=True))
            step = statistics.median(steps)
            line += (f'   {statistics.median(efficiencies):.0%} ({efficiencies[0]:.0%} to {efficiencies[-1]:.0%})'
                     f'{slower / step:15.1%}{middle["waiting"] / step:10.1%}{middle["sending"] / step:9.1%}')
    print(line, flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
