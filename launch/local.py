"""Processes that work together on this machine: one, or several through torchrun."""

import os
import sys
from importlib import import_module

from imago.trainer.command import Parser, up_to

MOST_RANKS = 1024   # on a node


def start(module: str, command: str, arguments: list[str], prog: str, flag: str = '--gpus') -> int:
    """Become `python -m MODULE ARGUMENTS`, or with `flag` N > 1 run N of them under torchrun. Return its exit status.

    With N > 1 the function `ahead` of the module `command` first answers for all N what needs none of them. It returns the
    exit status, or None if they must start.
    """
    parser = Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest='ranks', type=up_to(MOST_RANKS), default=1)
    options, rest = parser.parse_known_args(arguments)
    if options.ranks == 1:
        os.execv(sys.executable, [sys.executable, '-m', module, *rest])
    status = import_module(command).ahead(rest, options.ranks)
    if status is not None:
        return status
    from imago.launch.torchrun import run_torchrun
    return run_torchrun(options.ranks, ['--standalone', '-m', module, *rest])
