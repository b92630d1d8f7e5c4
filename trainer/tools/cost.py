"""`imago cost` estimates seconds per kimg, network traffic and memory of a run on machines that need not be there."""

import argparse
import sys

from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.load import load_config
from imago.trainer.config.sections import CONTINUOUS
from imago.trainer.data.manifest import Manifest
from imago.trainer.plan.layouts import layouts
from imago.trainer.plan.machine import PEAKS, Machine
from imago.trainer.wording import shown

MOST = {'nodes': 10_000, 'gpus_per_node': 1024, 'classes': 1_000_000, 'channels': 64}    # other numbers may be up to 1e9


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return tell_errors('imago cost', lambda: cost(options))


def cost(options: argparse.Namespace) -> int:
    """Print a line for each layout. Returns the exit status. ValueError, before any work, for what makes no sense."""
    config = load_config(options.config, options.overrides)
    machine, memory_gb = machine_of(options)
    if config.data.conditional and not options.classes:
        raise ValueError(f'data.conditional={str(config.data.conditional).lower()}, and the pictures are not looked at; '
                         'give --classes N')
    planned = list(layouts(config, options.nodes, options.gpus_per_node))
    classes = options.classes if config.data.conditional else 0
    shape = (classes,) if config.data.conditional == CONTINUOUS else None
    names, counts = (tuple(map(str, range(classes))), (1,) * classes) if shape is None else ((), ())
    manifest = Manifest(config.data.size(None), options.channels, 'webp', names, counts, (), condition_shape=shape)
    from imago.trainer.plan.cost import table
    print(table(config, manifest, machine, memory_gb, planned))
    return 0


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
    parser.add_argument('--sustained', type=float, default=0.25, metavar='SHARE', help='of the peak FLOP/s in bf16 and TF32')
    parser.add_argument('--sustained32', type=float, default=0.6, metavar='SHARE', help='of the peak FLOP/s in float32')
    parser.add_argument('--sustained-memory', type=float, default=0.55, metavar='SHARE', help='of the peak bandwidth')
    parser.add_argument('--tflops', type=float, metavar='X', help='TFLOP/s sustained in bf16')
    parser.add_argument('--tf32-tflops', type=float, metavar='X', help='TFLOP/s sustained in TF32')
    parser.add_argument('--tflops32', type=float, metavar='X', help='TFLOP/s sustained in float32')
    parser.add_argument('--memory-gbytes', type=float, metavar='X', help="GB/s sustained of a GPU's memory")
    parser.add_argument('--memory-gb', type=float, metavar='X', help='GB of memory of a GPU')
    parser.add_argument('--node-link-gbytes', type=float, metavar='X', help='GB/s that a GPU sends inside its node')
    parser.add_argument('--link-gbit', type=float, default=400, metavar='X', help='Gbit/s that a node sends to others')
    parser.add_argument('--launch-us', type=float, default=40, metavar='X',
                        help='microseconds in which the host gives out an operation')
    parser.add_argument('--replay-us', type=float, default=2, metavar='X',
                        help='microseconds that an operation of a CUDA graph takes at least')
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
    for name in ('sustained', 'sustained32', 'sustained_memory'):
        if given[name] > 1:
            raise ValueError(f'--{name.replace("_", "-")} {given[name]:g} is more than the peak; give a share of at most 1')
    peak = PEAKS[options.gpu]
    share = {'tflops': options.sustained, 'tf32_tflops': options.sustained, 'tflops32': options.sustained32,
             'memory_gbytes': options.sustained_memory}
    speed = {name: given[name] or peak[name] * share.get(name, 1.0) for name in peak}
    return Machine(speed['tflops'] * 1e12, speed['tflops32'] * 1e12, speed['tf32_tflops'] * 1e12, speed['memory_gbytes'] * 1e9,
                   options.launch_us / 1e6, options.replay_us / 1e6, speed['node_link_gbytes'] * 1e9,
                   options.link_gbit / 8 * 1e9, options.node_latency_us / 1e6, options.latency_us / 1e6), speed['memory_gb']


if __name__ == '__main__':
    sys.exit(main())
