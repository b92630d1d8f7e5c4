"""`imago launch node`: one node's part of a run over several, under torchrun with c10d rendezvous.

Exit status: 0 when the run is finished, 143 when it is to be started again (as after SIGTERM), 2 for what only the user
can mend, another one for a failure that restarts did not mend.
"""

import argparse
import os
import sys
from pathlib import Path

from launch.cluster import load_run, run_parser, tell_errors
from launch.torchrun import STOPPED, run_torchrun
from trainer.config import Config

PROG, MAX_RESTARTS = 'imago launch node', 3


def main(arguments: list[str] | None = None) -> int:
    parser = run_parser(PROG, 'One node of several: torchrun, which every node starts with the same arguments.')
    parser.add_argument('--rendezvous', required=True, metavar='HOST:PORT', help='where the nodes meet: on one of them')
    parser.add_argument('--id', default='imago', help='the same on all nodes, another one for each job')
    options = parser.parse_intermixed_args(arguments)
    return tell_errors(PROG, lambda: run_node(options))


def run_node(options: argparse.Namespace) -> int:
    config = load_run(options)
    # with a store shared between agent and ranks, a node that comes back would find the old one
    os.environ.setdefault('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    from torch.distributed import DistError
    from torch.distributed.elastic.rendezvous import RendezvousError
    try:
        status = run_torchrun(options.gpus_per_node, [
            f'--nnodes={options.nodes}', f'--max-restarts={MAX_RESTARTS}', '--rdzv-backend=c10d', f'--rdzv-id={options.id}',
            f'--rdzv-endpoint={options.rendezvous}', '-m', 'trainer', options.config, *options.overrides])
    except (RendezvousError, DistError) as error:
        print(f'{PROG}: lost the other nodes: {error}', file=sys.stderr)
        return STOPPED
    return STOPPED if status == 0 and not finished(config) else status


def finished(config: Config) -> bool:
    """Whether a checkpoint of the last image is there. Its name counts images, and it only has it when it is whole."""
    names = [path.name for path in (Path(config.run_dir) / 'checkpoints').glob('*')]
    return any(name.isdigit() and int(name) >= config.total_nimg for name in names)


if __name__ == '__main__':
    sys.exit(main())
