"""`imago launch node` runs one node's part of a run over several, under torchrun with c10d rendezvous.

The exit status is 0 when the run is finished, 143 when it is to be started again (as after SIGTERM), 2 for what only the
user can mend, and another one for a failure that restarts did not mend.
"""

import argparse
import ipaddress
import os
import re
import socket
import sys
from pathlib import Path

import psutil

from imago.launch.cluster import MOST_NODES, load_run, run_parser, spelled
from imago.launch.torchrun import STOPPED, run_torchrun
from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.load import Config
from imago.trainer.runs.checkpoint_names import TIME_OVER, list_checkpoints
from imago.trainer.wording import shown

PROG, MAX_RESTARTS = 'imago launch node', 3
HOST = re.compile(r'[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]', re.ASCII)   # a name or an address
LAST_CALL = 10   # seconds that an elastic run waits for more nodes than it needs


def parser() -> Parser:
    parser = run_parser(PROG, 'One node of several: torchrun, which every node starts with the same arguments.',
                        nodes=node_range, nodes_help='N, or MIN:MAX to go on with what is left after a loss')
    parser.add_argument('--rendezvous', required=True, metavar='HOST:PORT', help='where the nodes meet: on one of them')
    parser.add_argument('--id', default='imago', type=spelled('[A-Za-z0-9_.-]+', 'take letters, digits and . _ -', 100),
                        help='the same on all nodes, another one for each job')
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return tell_errors(PROG, lambda: run_node(options))


def node_range(text: str) -> range:
    """Turn '4' into range(4, 5), and '2:4' into range(2, 5)."""
    match = re.fullmatch('([1-9][0-9]{0,8})(?::([1-9][0-9]{0,8}))?', text)
    if match is None or not int(match[1]) <= int(match[2] or match[1]) <= MOST_NODES:
        raise argparse.ArgumentTypeError(f'{shown(text)} is not of the form N or MIN:MAX, from 1 to {MOST_NODES}')
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def run_node(options: argparse.Namespace) -> int:
    config = load_run(options)
    endpoint, address = meeting_point(options.rendezvous)
    # with a store shared between agent and ranks, a node that comes back would find the old one
    os.environ.setdefault('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    from torch.distributed import DistError
    from torch.distributed.elastic.rendezvous import RendezvousError
    try:
        status = run_torchrun(options.gpus_per_node, [
            f'--nnodes={options.nodes[0]}:{options.nodes[-1]}', f'--max-restarts={MAX_RESTARTS}', '--rdzv-backend=c10d',
            f'--rdzv-id={options.id}', f'--rdzv-endpoint={endpoint}', f'--rdzv-conf=last_call_timeout={LAST_CALL}',
            *([f'--local-addr={address}'] if address else []), '-m', 'imago.trainer', options.config, *options.overrides])
    except (RendezvousError, DistError) as error:
        print(f'{PROG}: lost the other nodes: {error}', file=sys.stderr)
        return STOPPED
    return STOPPED if status == 0 and not finished(config) else status


def meeting_point(rendezvous: str) -> tuple[str, str | None]:
    """Return where torchrun meets the others, and the address at which they reach this node; tell gloo its interface.

    By itself torchrun goes by host names, which need not lead to a node, or tell a node that it is the meeting point. The
    address is None where the name of the rendezvous leads nowhere yet, or only to this machine: then torchrun finds out itself.
    A pod of Kubernetes may start before its own name leads anywhere, and then knows it by the first part.
    """
    host, _, port = rendezvous.rpartition(':')
    if not HOST.fullmatch(host) or not re.fullmatch('[0-9]{1,5}', port) or not 1 <= int(port) < 1 << 16:
        raise ValueError(f'--rendezvous {shown(rendezvous)} is not of the form HOST:PORT, with a port from 1 to 65535')
    try:
        family, kind, _, _, there = socket.getaddrinfo(host.strip('[]'), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)    # this sends nothing
            address = probe.getsockname()[0]
    except OSError:
        return (f'localhost:{port}' if host.partition('.')[0] == socket.gethostname() else rendezvous), None
    if ipaddress.ip_address(address).is_loopback:
        return rendezvous, None
    interfaces = [name for name, entries in psutil.net_if_addrs().items() if address in [entry.address for entry in entries]]
    if interfaces:
        os.environ.setdefault('GLOO_SOCKET_IFNAME', interfaces[0])
    return (f'localhost:{port}' if address == there[0] else rendezvous), address


def finished(config: Config) -> bool:
    """Return whether there is a checkpoint of the last image, or the run has ended by `stop_after`."""
    folder = Path(config.run_dir)
    return (any(int(path.name) >= config.total_nimg for path in list_checkpoints(folder / 'checkpoints'))
            or config.stop_after is not None and (folder / TIME_OVER).exists())


if __name__ == '__main__':
    sys.exit(main())
