"""`imago` is one command, whose sub-commands are processes of their own."""

import argparse
import os
import sys
from importlib import metadata
from typing import NoReturn

from imago.launch import local
from imago.trainer.command import Parser

MODULES = {
    'pack': ('imago.trainer.pack.command', 'a folder, a zip or tars of pictures -> shards to train from'),
    'train': ('imago.trainer.tools.train', 'train, or go on training; --gpus N for several processes on this machine'),
    'sample': ('imago.trainer.tools.sample', 'pictures from a run, a checkpoint or an export'),
    'export': ('imago.trainer.tools.export', 'the trained generator as safetensors'),
    'evaluate': ('imago.trainer.tools.evaluate', 'scores of a generator or of pictures beside a dataset; --gpus N as for train'),
    'plot': ('imago.trainer.tools.plot', 'learning curves of one or several runs as one PNG'),
    'compare': ('imago.trainer.tools.compare', 'one table of several runs and their scores'),
    'cost': ('imago.trainer.tools.cost', 'seconds, traffic and memory of a run on GPUs and nodes that need not be there'),
    'launch': ('', 'the same run elsewhere: slurm, kubernetes, node (one of several), or local with --nproc N'),
    'doctor': ('imago.launch.doctor', 'what this machine has, and what it means for a run'),
    'completion': ('imago.launch.completion', 'what makes bash or zsh complete all this'),
}
WHERE = {'slurm': 'imago.launch.slurm', 'kubernetes': 'imago.launch.kubernetes', 'node': 'imago.launch.node',
         'local': 'imago.trainer.tools.train'}
LAUNCHERS = tuple(WHERE)


def main() -> int:
    commands = '\n'.join(f'  {name:11}{text}' for name, (_, text) in MODULES.items())
    parser = Parser(
        prog='imago', description='Train GANs for high-resolution pictures.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'commands:\n{commands}\n\nimago COMMAND --help says more.')
    parser.add_argument('--version', action='version', version=f'imago {metadata.version("imago-gan")}')
    parser.add_argument('command', choices=MODULES, metavar='COMMAND')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    options = parser.parse_args()
    # a folder named `imago` where the command is typed must not hide this package
    os.environ.setdefault('PYTHONSAFEPATH', '1')
    if options.command == 'train':
        return local.start('imago.trainer', MODULES['train'][0], options.arguments, 'imago train')
    if options.command == 'evaluate':
        return local.start(MODULES['evaluate'][0], MODULES['evaluate'][0], options.arguments, 'imago evaluate')
    if options.command == 'launch':
        return launch(options.arguments)
    run_module(MODULES[options.command][0], options.arguments)


def launch(arguments: list[str]) -> int:
    parser = Parser(prog='imago launch', description='Start a run elsewhere. imago launch WHERE --help says more.')
    parser.add_argument('where', choices=LAUNCHERS)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    options = parser.parse_args(arguments)
    if options.where == 'local':
        return local.start('imago.trainer', MODULES['train'][0], options.arguments, 'imago launch local', '--nproc')
    run_module(WHERE[options.where], options.arguments)


def run_module(name: str, arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, '-m', name, *arguments])


if __name__ == '__main__':
    sys.exit(main())
