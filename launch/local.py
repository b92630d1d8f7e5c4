"""A command runs on this machine as one process, or as several that work together through torchrun."""

import os
import sys

from imago.launch.cluster import MOST_RANKS, up_to
from imago.launch.torchrun import run_torchrun
from imago.trainer.command import Parser


def start(module: str, arguments: list[str], prog: str, flag: str = '--gpus') -> int:
    """Become `python -m MODULE ARGUMENTS`, or with `flag` N > 1 run N of them under torchrun. Return its exit status."""
    parser = Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest='ranks', type=up_to(MOST_RANKS), default=1)
    options, rest = parser.parse_known_args(arguments)
    if options.ranks == 1:
        os.execv(sys.executable, [sys.executable, '-m', module, *rest])
    return run_torchrun(options.ranks, ['--standalone', '-m', module, *rest])
