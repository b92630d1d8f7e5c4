"""What a step of a run takes on machines that need not be there: time, network traffic and memory.

Times add up, operations by a roofline and then each collective, as if none of them overlapped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from imago.trainer.config.division import parts_of
from imago.trainer.config.load import Config
from imago.trainer.data.manifest import Manifest
from imago.trainer.games import why_no_graphs
from imago.trainer.models import num_parameters
from imago.trainer.plan.layouts import Group
from imago.trainer.plan.machine import Machine
from imago.trainer.plan.preflight import rank_bytes
from imago.trainer.plan.traffic import Collective, phase_traffic
from imago.trainer.plan.work import Operation, PhaseWork, Work, count_work

# These are the times that each parameter is read or written in float32: by Adam's foreach kernels; by zeroing, two norms and
# an average; by gathering; by cutting gradients into parts; by EMA.
ADAM, GRADIENT, GATHER, CUT, EMA = 18, 5, 4, 4, 3
CAUSES = {'arithmetic': 'arithmetic', 'bandwidth': "GPU memory's bandwidth",
          'launches': 'kernel launches: too few images a GPU', 'inside': 'links inside nodes',
          'between': 'links between nodes', 'latency': 'latency of messages'}


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
        share, graph = 1 / phase.interval, captured(config, world, work.networks)
        for count, operations in ((micro_batches, phase.micro), (1, phase.once), (1, upkeep(config, phase, work, world))):
            add(seconds, machine.compute(operations, graph and operations is phase.micro, config.precision.tf32), share * count)
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


def captured(config: Config, world: int, networks: dict[str, nn.Module]) -> bool:
    """Return whether a run on so many GPUs replays its phases."""
    return config.graphs != 'off' and why_no_graphs(config, networks, world) is None


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


def table(config: Config, manifest: Manifest, machine: Machine, memory_gb: float,
          layouts: Sequence[tuple[Config, int, int]]) -> str:
    """Write a line for each layout, see `layouts`. Its efficiency is images per second and GPU, over those of the first one."""
    works = {micro: count_work(config, manifest, micro) for micro in {planned.micro_batch for planned, *_ in layouts}}
    costs = [cost(planned, works[planned.micro_batch], machine, *cluster) for planned, *cluster in layouts]
    lines = [' GPUs  strategy            batch  micro    s/kimg  images/s   MB sent  between nodes  GB/GPU  efficiency  '
             'most time']
    for (planned, nodes, gpus), found in zip(layouts, costs, strict=True):
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
