"""`imago completion bash` or `zsh` prints what makes the shell complete commands, options and names of configurations."""

import argparse
import sys
from importlib import import_module

import shtab

from imago.launch.cli import LAUNCHERS, MODULES, WHERE
from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.shipped import names

SHELLS = ('bash', 'zsh')


def parser() -> Parser:
    parser = Parser(prog='imago completion', description=__doc__, epilog='bash: imago completion bash > '
                    '~/.local/share/bash-completion/completions/imago; zsh: imago completion zsh > a folder of $fpath/_imago')
    parser.add_argument('shell', choices=SHELLS)
    return parser


def whole() -> argparse.ArgumentParser:
    """Return one parser with all commands in it, as shtab wants it."""
    every = argparse.ArgumentParser(prog='imago')
    commands = every.add_subparsers()
    for name, (module, text) in MODULES.items():
        if module:
            add(commands, name, module, text)
    places = commands.add_parser('launch', help=MODULES['launch'][1]).add_subparsers()
    for where in LAUNCHERS:
        add(places, where, WHERE[where], f'imago launch {where}')
    return every


def add(commands: 'argparse._SubParsersAction[argparse.ArgumentParser]', name: str, module: str, text: str) -> None:
    """Add a command with the options of its own parser."""
    own = import_module(module).parser()
    command = commands.add_parser(name, help=text, parents=[own], add_help=False, conflict_handler='resolve')
    if name in ('train', 'evaluate'):
        command.add_argument('--gpus', metavar='N', help='so many processes here')    # launch/local.py reads it
    for action in command._actions:
        if action.dest == 'config':
            action.choices = names()
        elif action.dest in ('source', 'out', 'runs', 'data', 'labels', 'pair', 'conditions'):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab reads this attribute


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> int:
        print(shtab.complete(whole(), shell=options.shell))
        return 0
    return tell_errors('imago completion', work)


if __name__ == '__main__':
    sys.exit(main())
