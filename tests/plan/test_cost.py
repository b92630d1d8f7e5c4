"""What `imago cost` counts, against real runs: collectives that were called, and convolutions counted by hand."""

from dataclasses import replace

import pytest
import torch
from families_for_tests import config_of
from runs_for_tests import game_of, on_ranks, write_tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imago.trainer.config.sections import PrecisionConfig
from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.phase import run_phase
from imago.trainer.plan.cost import cost, limit
from imago.trainer.plan.layouts import STRATEGIES, Group
from imago.trainer.plan.machine import Machine
from imago.trainer.plan.traffic import Collective, phase_traffic
from imago.trainer.plan.work import Operation, Operations, count_work
from imago.trainer.start import open_stream
from imago.trainer.tools.cost import main

KINDS = {'allreduce_': 'all_reduce', '_allgather_base_': 'all_gather', 'reduce_scatter_': 'reduce_scatter'}
MACHINE = Machine(flops_low=4e14, flops=2e14, flops_tf32=3e14, bandwidth=4e12, launch=1e-6, replay=1e-7, inside=4e11,
                  between=5e10, latency_inside=5e-6, latency_between=1e-5)
SLOW = replace(MACHINE, flops_low=1e3, flops=1e3, flops_tf32=2e3)       # everything waits for arithmetic
SLOW_HOST = replace(MACHINE, launch=1e-3)


class Called(TorchDispatchMode):
    """This mode records (kind, bytes of the whole data) of each collective."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == 'c10d' and op._opname in KINDS:
            kind = KINDS[op._opname]
            whole = args[1] if kind == 'reduce_scatter' else args[0]
            tensors = [leaf for leaf in tree_leaves(whole) if isinstance(leaf, torch.Tensor)]
            self.found.append((kind, sum(tensor.nbytes for tensor in tensors)))
        return op(*args, **(kwargs or {}))


def collectives_called(config):
    """Run each phase, and return {phase: the collectives that this rank called}."""
    strategy = make_strategy(config.parallel)
    game = game_of(config, strategy)
    game.begin_step()
    batch = next(open_stream(config, open_dataset(config.data.path), game.plan, 0))
    found = {}
    for phase in game.phases():
        with Called() as called:
            run_phase(phase, game.micro_batches(batch, phase), game.state, config.seed, strategy)
        found[phase.name] = called.found
    return found


@pytest.fixture(scope='module')
def work(wide_shards):
    """The work of tiny StyleGAN2 at 3 images per micro-batch."""
    return count_work(config_of('stylegan2', wide_shards, 'none'), open_dataset(wide_shards).manifest, 3)


def compare_collectives(configs, works, world):
    results = on_ranks(world, collectives_of_each, configs)
    for number, (config, work) in enumerate(zip(configs, works, strict=True)):
        micro_batches = config.batch // (world * config.micro_batch)
        expected = {phase.name: [(collective.kind, collective.bytes) for collective in phase_traffic(
            config.parallel, phase, work.networks, micro_batches, 1, world)] for phase in work.phases}
        for of_rank in results:
            assert of_rank[number] == expected, config.parallel


def collectives_of_each(configs):
    return [collectives_called(config) for config in configs]


def test_collectives_are_those_of_a_real_run(wide_shards, tmp_path, work):
    """This holds for each strategy, and with batch norm over the ranks."""
    configs = [config_of('stylegan2', wide_shards, tmp_path, 2, parallel={'strategy': strategy}) for strategy in STRATEGIES]
    biggan = config_of('biggan', wide_shards, tmp_path, 2)
    normalised = count_work(biggan, open_dataset(wide_shards).manifest, biggan.micro_batch)
    compare_collectives([*configs, biggan], [*[work] * len(configs), normalised], 2)


def test_collectives_of_two_replicas(wide_shards, tmp_path, work):
    config = config_of('stylegan2', wide_shards, tmp_path, 4, parallel={'strategy': 'fsdp', 'replicas': 2})
    compare_collectives([config], [work], 4)


def test_flops_and_bytes_of_a_convolution():
    """There is a forward pass, a backward pass to input and weight, and all three once more for the gradient's own gradient."""
    n, i, o, size = 2, 3, 5, 8
    layer, x = torch.nn.Conv2d(i, o, 3, padding=1, bias=False), torch.ones(n, i, size, size, requires_grad=True)
    once = 2 * n * i * o * 9 * size * size
    with Operations() as forward:
        y = layer(x)
    assert forward.found == [Operation(once, False, 4 * (x.numel() + layer.weight.numel() + y.numel()))]
    with Operations() as backward:
        y.sum().backward()
    assert sum(operation.flops for operation in backward.found) == 2 * once
    with Operations() as penalty:
        gradient, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    # six products: y and its gradient to x; from that one to the weight and to y's gradient; from y to x and to the weight
    assert sum(operation.flops for operation in penalty.found) == 6 * once
    with Operations() as free:
        torch.empty(4).view(2, 2).t().detach()
    assert free.found == []
    with Operations() as low:
        layer.bfloat16()(x.bfloat16())
    assert [operation.flops for operation in low.found if operation.low and operation.flops] == [once]


def test_work_of_a_run(wide_shards, work):
    """Twice the micro-batch is twice the work, and a phase counts once in its interval."""
    config = config_of('stylegan2', wide_shards, 'none')
    double = count_work(config, open_dataset(wide_shards).manifest, 6)
    flops = [{phase.name: sum(operation.flops for operation in phase.micro) for phase in each.phases}
             for each in (work, double)]
    assert flops[0].keys() == {'D_main', 'D_reg', 'G_main', 'G_reg'}
    assert all(flops[1][name] == 2 * flops[0][name] > 0 for name in ('D_main', 'D_reg', 'G_main'))
    seconds = []
    for interval in (1, 4):
        phases = [replace(phase, interval=interval) for phase in work.phases if phase.name == 'D_reg']
        seconds.append(cost(config, replace(work, phases=phases), SLOW, 1, 1).seconds['arithmetic'])
    micro_batches = config.batch // config.micro_batch
    assert seconds[0] == 4 * seconds[1] == pytest.approx(micro_batches * flops[0]['D_reg'] / SLOW.flops)


def test_rings_and_rounds():
    """A rank sends 2 (N - 1) / N of an all-reduce's bytes; where the ranks span nodes, each GPU sends a share to other nodes."""
    flat, wide = (Collective('all_reduce', 8000, group) for group in (Group(8), Group(2, 4)))
    assert flat.sent_inside() == wide.sent_inside() + wide.sent_between() == 2 * 7 / 8 * 8000
    assert flat.sent_between() == 0 and wide.sent_between() == 2 * 3 / 4 * 8000 / 2
    assert flat.rounds() == (6, 0) and wide.rounds() == (2, 4)
    scatter, gather = (Collective(kind, 8000, Group(4)) for kind in ('reduce_scatter', 'all_gather'))
    assert scatter.sent_inside() + gather.sent_inside() == Collective('all_reduce', 8000, Group(4)).sent_inside()
    assert MACHINE.send(wide, 2)['between'] == pytest.approx(2 * wide.sent_between() / MACHINE.between)


def test_more_nodes(wide_shards, work):
    """With the same batch per rank, computing takes as long, while links between nodes carry more."""
    config = config_of('stylegan2', wide_shards, 'none')
    one, two, four = (cost(config.model_copy(update={'batch': 12 * nodes}), work, MACHINE, nodes, 4) for nodes in (1, 2, 4))
    for cause in ('arithmetic', 'bandwidth', 'launches', 'inside'):
        assert one.seconds[cause] == two.seconds[cause] == four.seconds[cause]
    assert one.sent_between == 0 < two.sent_between < four.sent_between < 2 * two.sent_between
    assert one.step < two.step < four.step and four.per_kimg < two.per_kimg


def test_table(shards, tmp_path, capsys):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    options = ['--nodes', '1', '2', '--gpus-per-node', '2', '--memory-gb', '0.00085']
    assert main([str(path), 'data.resolution=16', *options]) == 0
    _, alone, *lines = capsys.readouterr().out.splitlines()
    assert alone.split()[:3] == ['1', 'one', 'process'] and len(lines) == 2 * len(STRATEGIES) + 1
    assert 'does not fit into 0.00085 GB' in alone and 'does not fit' not in lines[-2]
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('arguments, message', [
    (['--nodes', '0'], '--nodes 0 is not above 0'),
    (['--nodes', '1', '20000', '2'], '--nodes 20000 is not above 0 and at most 10000'),
    (['--tflops', '-1'], '--tflops -1.0 is not above 0'),
    (['--tflops', 'nan'], '--tflops nan is not above 0'),
    (['--link-gbit', 'inf'], '--link-gbit inf is not above 0'),
    (['--classes', '-1', 'data.conditional=true'], '--classes -1 is not above 0'),
    (['--classes', '1000000000', 'data.conditional=true'], 'at most 1e+06'),
    (['--channels', '1000000'], 'at most 64'),
    (['--sustained', '1.5'], '--sustained 1.5 is more than the peak'),
    (['--gpus-per-node', '5'], 'data.lanes=12 is not a multiple of the 5 ranks'),
    (['micro_batch=5', '--gpus-per-node', '1'], 'batch=12 is not a multiple of 1 ranks x micro_batch=5'),
    (['data.conditional=true'], 'give --classes N'),
    (['bacth=3'], 'did you mean batch?'),
    (['data.resolution=null'], 'data.resolution is not set'),
    (['--nodes', '4', '--gpus-per-node', '3', 'parallel.strategy=fsdp', 'parallel.replicas=6'], 'use a divisor of 4'),
])
def test_bad_input_is_one_line_and_status_2(shards, tmp_path, capsys, arguments, message):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    assert main([str(path), 'data.resolution=16', '--gpus-per-node', '2', *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('imago cost: error: ') and error.count('\n') == 1 and message in error


def test_what_launches_nothing_does_not_count():
    """A linear layer, a bias, a ReLU and a sum: as many kernels as a profile of these shows, and no question about a device."""
    with torch.device('meta'):
        x, layer = torch.empty(4, 8, requires_grad=True), torch.nn.Linear(8, 6)
    with Operations() as forward:
        y = layer(x).relu().view(24)[:12]
    assert len(forward.found) == 2       # addmm, relu; views are free
    assert x.device.type == 'meta'
    with Operations() as backward:
        y.backward(torch.empty_like(y))
    assert len(backward.found) == 5      # the slice's gradient, relu's, two products, and the bias's sum
    with Operations() as questions:
        torch.ops.prim.device(x)
        torch.empty(3).resize_(2)
        torch.zeros(0).clone()
    assert questions.found == []


def test_a_graph_hides_the_host(wide_shards, work):
    """Eager phases of tiny networks wait for the host, captured ones do not; and TF32 is a choice of the configuration."""
    config = config_of('stylegan2', wide_shards, 'none')
    eager, graph = (cost(config.model_copy(update={'graphs': mode}), work, SLOW_HOST, 1, 1) for mode in ('off', 'auto'))
    operations = sum(len(phase.micro) / phase.interval for phase in work.phases) * config.batch / config.micro_batch
    assert eager.seconds['launches'] == pytest.approx(operations * SLOW_HOST.launch, rel=0.2)
    assert eager.step > 5 * graph.step and limit(eager, 80).startswith('kernel launches')
    sharded = config.model_copy(update={'parallel': config.parallel.model_copy(update={'strategy': 'fsdp'})})
    assert cost(sharded, work, SLOW_HOST, 1, 2).seconds['launches'] > cost(config, work, SLOW_HOST, 1, 2).seconds['launches']
    exact = cost(config, work, SLOW, 1, 1)
    loose = cost(config.model_copy(update={'precision': PrecisionConfig(tf32=True)}), work, SLOW, 1, 1)
    assert loose.seconds['arithmetic'] < exact.seconds['arithmetic']
