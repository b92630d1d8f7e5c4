"""`imago train` trains a run, from its configuration to its last checkpoint. The same command starts and resumes it."""

import argparse
import os
import sys
from pathlib import Path

from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.load import Config, load_config, to_yaml
from imago.trainer.config.shipped import table
from imago.trainer.data.locations import scheme_of
from imago.trainer.data.shards import Dataset
from imago.trainer.metrics.settings import check_extractor
from imago.trainer.ranks.stop_signals import StopSignal
from imago.trainer.ranks.world import print0, refuse, world_size
from imago.trainer.runs.dataset import lanes_of, open_checked
from imago.trainer.runs.run_folder import check_same_run

PROG = 'imago train'


def parser() -> Parser:
    parser = Parser(prog=PROG, description=__doc__, epilog='imago train also takes --gpus N: N processes here, by torchrun.')
    parser.add_argument('config', nargs='?', help='a YAML file, or the name of a configuration; without one, all are listed')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='dotted keys, e.g. data.path=my-shards batch=32')
    parser.add_argument('--dry-run', action='store_true',
                        help='check everything, say what the run needs, and whether it fits here')
    parser.add_argument('--print-config', action='store_true', help='check everything, and print the whole configuration')
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Do one rank's part of a run, and return its exit status."""
    options, ranks = parser().parse_intermixed_args(arguments), world_size()
    if options.config is None:
        return list_configs()
    try:
        config = read(options, ranks)
        if options.dry_run or options.print_config:
            return describe(options, config, ranks)
        if ranks == 1:     # several ranks compare what each of them finds, once they have met
            check_places(config, ranks)
    except (ValueError, OSError) as error:
        return refuse(PROG, error)
    from imago.trainer.train import begin
    return begin(config)


def ahead(arguments: list[str], ranks: int) -> int | None:
    """Refuse, or describe, a run of `ranks` processes on this machine. Returns the exit status, or None if they must start."""
    options = parser().parse_intermixed_args(arguments)
    if options.config is None:
        return list_configs()

    def answer() -> int | None:
        config = read(options, ranks)
        if options.dry_run or options.print_config:
            os.environ['LOCAL_WORLD_SIZE'] = str(ranks)     # as torchrun tells each of them
            return describe(options, config, ranks)
        check_places(config, ranks)
        return None
    return tell_errors(PROG, answer)


def list_configs() -> int:
    """Tell on stderr what can be trained. Returns the exit status."""
    print(f'usage: {PROG} CONFIG data.path=SHARDS run_dir=runs/NAME [key=value ...]\n\n'
          f'CONFIG is a YAML file, or one of these:\n\n{table()}\n\n'
          f'{PROG} CONFIG --print-config shows all keys; imago pack makes SHARDS of pictures.', file=sys.stderr)
    return 2


def read(options: argparse.Namespace, ranks: int) -> Config:
    """Return the configuration that the options give. ValueError if it is none, or none for `ranks` processes."""
    config = load_config(options.config, options.overrides)
    config.check_world(ranks)
    return config


def check_places(config: Config, ranks: int) -> None:
    """Raise ValueError if the run cannot use its dataset or its folder. Data that must be fetched is looked at later."""
    if not any(scheme_of(path) for path in (config.data.path, config.data.path_b, config.guard.data) if path):
        place(config, ranks)


def place(config: Config, ranks: int) -> tuple[Config, Dataset]:
    """Return `config` as the run in its folder has it, and its dataset. ValueError if it cannot use one of them."""
    dataset = open_checked(config)
    lanes = lanes_of(config, dataset, ranks)
    config = config.model_copy(update={'data': config.data.model_copy(update={'lanes': lanes})})
    check_same_run(Path(config.run_dir), config)
    if config.evaluate.interval_kimg:
        check_extractor(config.evaluate)
    return config, dataset


def describe(options: argparse.Namespace, config: Config, ranks: int) -> int:
    """Print the whole configuration, or what the run needs. Returns the exit status."""
    try:
        config, dataset = place(config, ranks)
    except StopSignal as error:
        print0(f'stopped while it waited for its data: {error}')
        return 0
    if options.print_config:
        print0(to_yaml(config))
        return 0
    from imago.trainer.plan.preflight import describe_needs
    from imago.trainer.ranks.device import check_device
    print0(describe_needs(config, dataset.manifest, ranks, check_device(config.device)))
    return 0
