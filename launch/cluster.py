"""The launchers share how they are called, and how they refuse."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from imago.launch.local import MOST_RANKS
from imago.trainer.command import Parser, up_to
from imago.trainer.config.load import Config, load_config
from imago.trainer.data.locations import could_hold_secrets, lacks_only_password, masked
from imago.trainer.wording import shown

MOST_NODES = 10_000   # in a run


def spelled(pattern: str, advice: str, most: int = 253) -> Callable[[str], str]:
    """Return the type of an argument that other programs read, by their grammar."""
    def parse(text: str) -> str:
        if len(text) > most or not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f'{shown(text)}: {advice}')
        return text
    return parse


# Docker and similar programs name an image by this: [REGISTRY[:PORT]/]NAME[:TAG][@DIGEST]
REFERENCE = r'[A-Za-z0-9][\w.-]*(:[0-9]{1,5}(?=/))?(/[\w.-]+)*(:[\w][\w.-]{0,127})?(@[A-Za-z0-9]+:[0-9a-fA-F]{32,128})?'


def run_parser(prog: str, about: str, nodes: Callable[[str], object] = up_to(MOST_NODES),
               nodes_help: str | None = None) -> Parser:
    """Return the parser for a run of `--nodes` x `--gpus-per-node` ranks. Overrides may stand between the options."""
    parser = Parser(prog=prog, description=about)
    parser.add_argument('config', help='a YAML file, or the name of one in configs/')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='dotted keys, as imago train takes them')
    parser.add_argument('--nodes', type=nodes, required=True, help=nodes_help)
    parser.add_argument('--gpus-per-node', type=up_to(MOST_RANKS), required=True,
                        help='ranks on each node; on CPUs with device=cpu')
    return parser


def job_parser(prog: str, about: str) -> Parser:
    """Return the parser for a job that is written down for a scheduler."""
    parser = run_parser(prog, about)
    parser.add_argument('--name', help="of the job; else the run folder's")
    parser.add_argument('--cpus-per-gpu', type=up_to(1024), default=8)
    parser.add_argument('-o', '--out', type=Path, metavar='FILE', help='a new file; else it is printed')
    return parser


def load_run(options: argparse.Namespace) -> Config:
    """Return the configuration. Raises ValueError if it cannot run on that many ranks."""
    config = load_config(options.config, options.overrides)
    for nodes in options.nodes if isinstance(options.nodes, range) else (options.nodes,):
        config.check_world(nodes * options.gpus_per_node)
    return config


def job_name(options: argparse.Namespace, config: Config) -> str:
    """Return a DNS label with room for `-node-0-9999-abcde` after it. Raises ValueError for a --name that is none."""
    if options.name is None:
        name = re.sub('[^a-z0-9]+', '-', Path(config.run_dir).name.lower()).strip('-')
        name = f'imago-{name}'[:45].strip('-')
    else:
        name = options.name
    if not re.fullmatch('[a-z]([a-z0-9-]{0,43}[a-z0-9])?', name):
        raise ValueError(f'--name {shown(name)}: take at most 45 small letters, digits and -, the first one a letter')
    return name


def locations_of(config: Config) -> dict[str, str]:
    """Return where the run's pictures lie, by key."""
    return {'data.path': config.data.path} | ({'guard.data': config.guard.data} if config.guard.data else {})


def check_masked(config: Config) -> None:
    """Raise ValueError unless the job itself can find what is missing in the run's locations, which its file shows masked."""
    for key, location in locations_of(config).items():
        if masked(location) == location:
            continue
        if not lacks_only_password(masked(location)):
            raise ValueError(f'{key}={masked(location)} has a secret in it, which the job would not get, as no file shows it; '
                             'let a pipe: take it from the environment ($NAME) or from a file, or use https://user@host')
        print(f'note: the password of {key}={masked(location)} is not written down; the nodes take it from their .netrc or from '
              'the environment variable IMAGO_DATA_PASSWORD', file=sys.stderr)


def write_new(path: Path, text: str) -> None:
    """Write a new file. Raises ValueError for an old one, which somebody may have edited. A full disk leaves no part of it."""
    try:
        file = open(path, 'x')
    except FileExistsError:
        raise ValueError(f'{path} is there already; remove it, or choose another -o FILE') from None
    try:
        with file:
            if could_hold_secrets(text):
                os.fchmod(file.fileno(), 0o600)
            file.write(text)
    except OSError:
        path.unlink()
        raise
