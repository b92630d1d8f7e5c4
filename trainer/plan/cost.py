"""`imago cost` estimates seconds per kimg, network traffic and memory of a run on machines that need not be there.

Training overlaps no computing with communication today, so times add up: operations by a roofline, then each collective.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from torch import nn

from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.load import Config, load_config
from imago.trainer.config.schedule import stage_at
from imago.trainer.config.sections import CONTINUOUS, ParallelConfig
from imago.trainer.data.manifest import Manifest
from imago.trainer.engine.parallel import parts_of
from imago.trainer.models import num_parameters
from imago.trainer.plan.preflight import rank_bytes
from imago.trainer.plan.traffic import Collective, Group, mesh, phase_traffic
from imago.trainer.plan.work import Operation, PhaseWork, Work, count_work
from imago.trainer.wording import shown

# These are the times that each parameter is read or written in float32: by Adam's foreach kernels; by zeroing, two norms and
# an average; by gathering; by cutting gradients into parts; by EMA.
ADAM, GRADIENT, GATHER, CUT, EMA = 18, 5, 4, 4, 3
MOST = {'nodes': 10_000, 'gpus_per_node': 1024, 'classes': 1_000_000, 'channels': 64}    # other numbers may be up to 1e9
STRATEGIES = get_args(ParallelConfig.model_fields['strategy'].annotation)
CAUSES = {'arithmetic': 'arithmetic', 'bandwidth': "GPU memory's bandwidth",
          'launches': 'kernel launches: too few images a GPU', 'inside': 'links inside nodes',
          'between': 'links between nodes', 'latency': 'latency of messages'}


@dataclass(frozen=True)
class Machine:
    """One GPU (or core), and the links that reach it. All speeds are sustained ones."""

    flops_low: float            # FLOP/s in bf16 or fp16
    flops: float                # FLOP/s in float32, TF32 where convolutions take it
    bandwidth: float            # bytes/s of its memory
    launch: float               # s to launch an operation
    inside: float               # bytes/s that a GPU sends to other GPUs of its node
    between: float              # bytes/s that a node sends to other nodes
    latency_inside: float       # s a message
    latency_between: float

    def compute(self, operations: Iterable[Operation]) -> dict[str, float]:
        """Return seconds by cause: operations wait for arithmetic or memory (Williams et al. 2009), or all for launches."""
        seconds, count = {'arithmetic': 0.0, 'bandwidth': 0.0}, 0
        for operation in operations:
            arithmetic = operation.flops / (self.flops_low if operation.low else self.flops)
            moving = operation.bytes / self.bandwidth
            seconds['arithmetic' if arithmetic > moving else 'bandwidth'] += max(arithmetic, moving)
            count += 1
        if count * self.launch > sum(seconds.values()):
            return {'launches': count * self.launch}
        return seconds

    def send(self, collective: Collective, gpus: int) -> dict[str, float]:
        """Return seconds by cause. The `gpus` of a node share its link to other nodes."""
        inside, between = collective.rounds()
        return {'inside': collective.sent_inside() / self.inside,
                'between': collective.sent_between() * gpus / self.between,
                'latency': inside * self.latency_inside + between * self.latency_between}


# Peaks are from the vendors' data sheets (bf16 and TF32 without sparsity, NVLink in one direction). The shares that are
# sustained (--sustained, --sustained-memory) are assumptions, as nothing was measured on these GPUs.
PEAKS = {'h200': {'tflops': 989, 'tflops32': 494, 'memory_gbytes': 4800, 'node_link_gbytes': 450, 'memory_gb': 141},
         'a100': {'tflops': 312, 'tflops32': 156, 'memory_gbytes': 2039, 'node_link_gbytes': 300, 'memory_gb': 80}}


@dataclass(frozen=True)
class Cost:
    """What a step of one layout costs, averaged over as many steps as it takes until every phase has come."""

    seconds: dict[str, float]       # a step, by cause
    sent: float                     # bytes a rank sends in a step
    sent_between: float             # of these, to other nodes
    held: int                       # bytes on a rank at the fullest moment
    batch: int
    micro_batch: int

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def per_kimg(self) -> float:
        return self.step / self.batch * 1000


def cost(config: Config, work: Work, machine: Machine, nodes: int, gpus: int) -> Cost:
    """Estimate a step of `config`, whose batch must divide among `nodes` x `gpus` ranks. `work` is that of a micro-batch."""
    world = nodes * gpus
    micro_batches = config.batch // (world * config.micro_batch)
    seconds, sent, between = dict.fromkeys(CAUSES, 0.0), 0.0, 0.0
    for phase in work.phases:
        share = 1 / phase.interval
        for count, operations in ((micro_batches, phase.micro), (1, phase.once), (1, upkeep(config, phase, work, world))):
            add(seconds, machine.compute(operations), share * count)
        for collective in phase_traffic(config.parallel, phase, work.networks, micro_batches, nodes, gpus):
            add(seconds, machine.send(collective, gpus), share)
            sent += share * (collective.sent_inside() + collective.sent_between())
            between += share * collective.sent_between()
    averages = [passes(EMA, work.networks[name], parts_of(config.parallel, world)) for name in work.plan.averaged]
    add(seconds, machine.compute(averages), 1)
    # the ranks ask one another whether any was told to stop
    add(seconds, machine.send(Collective('all_reduce', 8, Group(gpus, nodes)), gpus), 1)
    held = sum(rank_bytes(config, work.plan, work.networks, world)) + max(phase.activations for phase in work.phases)
    return Cost(seconds, sent, between, held, config.batch, config.micro_batch)


def upkeep(config: Config, phase: PhaseWork, work: Work, world: int) -> list[Operation]:
    """Return what a phase does to parameters and gradients besides loss and backward."""
    moments = world if config.parallel.strategy == 'zero' else parts_of(config.parallel, world)
    trained = [work.networks[name] for name in phase.trains]
    operations = [operation for network in trained for operation in (passes(ADAM, network, moments), passes(GRADIENT, network))]
    if config.parallel.strategy == 'fsdp':
        operations += [passes(CUT, network) for network in trained]
        operations += [passes(GATHER, work.networks[name]) for name in phase.uses]
    return operations


def passes(count: int, network: nn.Module, parts: int = 1) -> Operation:
    return Operation(0, False, count * 4 * num_parameters(network) // parts)


def add(total: dict[str, float], more: dict[str, float], times: float) -> None:
    for cause, seconds in more.items():
        total[cause] += times * seconds


def at_full_size(config: Config, world: int) -> Config:
    """Return `config` as the run ends, with a micro_batch that is no larger than a rank's share of the batch.

    ValueError where the batch cannot be divided.
    """
    if config.data.size(None) is None:
        raise ValueError('data.resolution is not set, and the pictures are not looked at; give data.resolution=512, say')
    stage = stage_at(config, config.data.size(None), config.total_nimg)
    micro_batch = min(stage.micro_batch, max(stage.batch // world, 1))
    config = config.model_copy(update={'growth': None, 'batch': stage.batch, 'micro_batch': micro_batch})
    config.check_world(world)
    return config


def layouts(config: Config, node_counts: list[int], gpus: int) -> Iterator[tuple[Config, int, int]]:
    """Yield (configuration, nodes, GPUs a node): one GPU, then each number of nodes under each strategy that makes sense."""
    yield at_full_size(spread(config, 'data'), 1), 1, 1
    for nodes in node_counts:
        if nodes * gpus > 1:
            ways = [*((strategy, 1) for strategy in STRATEGIES), ('fsdp', nodes),
                    (config.parallel.strategy, config.parallel.replicas)]
            for strategy, replicas in dict.fromkeys(ways):
                planned = at_full_size(spread(config, strategy, replicas), nodes * gpus)
                mesh(planned.parallel, nodes, gpus)
                yield planned, nodes, gpus


def spread(config: Config, strategy: str, replicas: int = 1) -> Config:
    return config.model_copy(update={'parallel': ParallelConfig(strategy=strategy, replicas=replicas)})


def table(config: Config, manifest: Manifest, machine: Machine, memory_gb: float, node_counts: list[int], gpus: int) -> str:
    """Write a line for each layout. Its efficiency is images per second and GPU, over those of one GPU."""
    planned_layouts = list(layouts(config, node_counts, gpus))      # a list, so that all refusals come before any work
    works = {micro: count_work(config, manifest, micro)
             for micro in {planned.micro_batch for planned, *_ in planned_layouts}}
    costs = [cost(planned, works[planned.micro_batch], machine, *cluster) for planned, *cluster in planned_layouts]
    lines = [' GPUs  strategy            batch  micro    s/kimg  images/s   MB sent  between nodes  GB/GPU  efficiency  '
             'most time']
    for (planned, nodes, gpus), found in zip(planned_layouts, costs, strict=True):
        world, parallel = nodes * gpus, planned.parallel
        way = parallel.strategy + (f', {parallel.replicas} replicas' if parallel.replicas > 1 else '')
        lines.append(f'{world:5}  {way if world > 1 else "one process":18} {planned.batch:6} {planned.micro_batch:6} '
                     f'{found.per_kimg:9.3f} {1000 / found.per_kimg:9.0f} {found.sent / 1e6:9.1f} '
                     f'{found.sent_between / 1e6:14.1f} {found.held / 1e9:7.1f} '
                     f'{costs[0].per_kimg / found.per_kimg / world:11.0%}  {limit(found, memory_gb)}')
    return '\n'.join(lines)


def limit(found: Cost, memory_gb: float) -> str:
    if found.held > memory_gb * 1e9:
        return f'memory: does not fit into {memory_gb:g} GB'
    cause = max(found.seconds, key=found.seconds.get)
    return f'{CAUSES[cause]} {found.seconds[cause] / found.step:.0%}'


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)

    def work() -> int:
        config = load_config(options.config, options.overrides)
        machine, memory_gb = machine_of(options)
        if config.data.conditional and not options.classes:
            raise ValueError(f'data.conditional={str(config.data.conditional).lower()}, and the pictures are not looked at; '
                             'give --classes N')
        classes = options.classes if config.data.conditional else 0
        shape = (classes,) if config.data.conditional == CONTINUOUS else None
        names, counts = (tuple(map(str, range(classes))), (1,) * classes) if shape is None else ((), ())
        manifest = Manifest(config.data.size(None), options.channels, 'webp', names, counts, (), condition_shape=shape)
        print(table(config, manifest, machine, memory_gb, options.nodes, options.gpus_per_node))
        return 0
    return tell_errors('imago cost', work)


def parser() -> Parser:
    parser = Parser(prog='imago cost', description=__doc__)
    parser.add_argument('config', help='a YAML file, or the name of one in configs/')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='dotted keys, as imago train takes them')
    parser.add_argument('--nodes', type=int, nargs='+', default=[1], metavar='N')
    parser.add_argument('--gpus-per-node', type=int, default=8, metavar='N')
    parser.add_argument('--classes', type=int, default=0, metavar='N',
                        help='of a dataset with labels; or the values of each of its conditions')
    parser.add_argument('--channels', type=int, default=3, metavar='N', help='of the pictures')
    parser.add_argument('--gpu', choices=PEAKS, default='h200', help='whose peaks count where no speed is given')
    parser.add_argument('--sustained', type=float, default=0.25, metavar='SHARE', help='of the peak FLOP/s')
    parser.add_argument('--sustained-memory', type=float, default=0.55, metavar='SHARE', help='of the peak bandwidth')
    parser.add_argument('--tflops', type=float, metavar='X', help='TFLOP/s sustained in bf16')
    parser.add_argument('--tflops32', type=float, metavar='X', help='TFLOP/s sustained in float32')
    parser.add_argument('--memory-gbytes', type=float, metavar='X', help="GB/s sustained of a GPU's memory")
    parser.add_argument('--memory-gb', type=float, metavar='X', help='GB of memory of a GPU')
    parser.add_argument('--node-link-gbytes', type=float, metavar='X', help='GB/s that a GPU sends inside its node')
    parser.add_argument('--link-gbit', type=float, default=400, metavar='X', help='Gbit/s that a node sends to others')
    parser.add_argument('--launch-us', type=float, default=6, metavar='X', help='microseconds to launch an operation')
    parser.add_argument('--node-latency-us', type=float, default=5, metavar='X', help='microseconds a message inside a node')
    parser.add_argument('--latency-us', type=float, default=15, metavar='X', help='microseconds a message between nodes')
    return parser


def machine_of(options: argparse.Namespace) -> tuple[Machine, float]:
    """Return the machine that the options describe, and its memory in GB. ValueError for numbers that no machine has."""
    given = vars(options)
    for name, value in given.items():
        most = MOST.get(name, 1e9)
        for number in value if name == 'nodes' else [value]:
            if isinstance(number, (int, float)) and not (0 if name == 'classes' else sys.float_info.min) <= number <= most:
                raise ValueError(f'--{name.replace("_", "-")} {shown(number)} is not above 0 and at most {most:g}')
    for name in ('sustained', 'sustained_memory'):
        if given[name] > 1:
            raise ValueError(f'--{name.replace("_", "-")} {given[name]:g} is more than the peak; give a share of at most 1')
    peak = PEAKS[options.gpu]
    share = {'tflops': options.sustained, 'tflops32': options.sustained, 'memory_gbytes': options.sustained_memory}
    speed = {name: given[name] or peak[name] * share.get(name, 1.0) for name in peak}
    return Machine(speed['tflops'] * 1e12, speed['tflops32'] * 1e12, speed['memory_gbytes'] * 1e9, options.launch_us / 1e6,
                   speed['node_link_gbytes'] * 1e9, options.link_gbit / 8 * 1e9, options.node_latency_us / 1e6,
                   options.latency_us / 1e6), speed['memory_gb']


if __name__ == '__main__':
    sys.exit(main())
