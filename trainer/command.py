"""Every command reads its arguments and ends in the same way: it tells what is wrong in one line, with exit status 2."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from imago.trainer.wording import one_line, shown

INTERRUPTED, CUT_OFF = 130, 141    # exit statuses after Ctrl-C, and where nobody reads on: those that shells give


class Parser(argparse.ArgumentParser):
    """This parser tells an error in one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        args = list(sys.argv[1:] if args is None else args)
        for argument in args:
            if any('\ud800' <= character <= '\udfff' for character in argument):
                self.error(f'argument {shown(argument)} is no UTF-8 text')    # it could not even be printed
            if argument.startswith('--') and argument.endswith('=--'):
                self.error(f'argument {shown(argument)}: -- is no value')     # argparse would take an empty list for it
        return super().parse_known_args(_joined(args), namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {one_line(message)}\n')


def up_to(most: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number from 1 to `most`."""
    def parse(text: str) -> int:
        if not re.fullmatch('[0-9]{1,9}', text) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f'{shown(text)} is no whole number from 1 to {most}')
        return int(text)
    return parse


def _joined(args: list[str]) -> list[str]:
    """Join each list of numbers that begins with a minus to the option before it: argparse would take it for an option."""
    joined = []
    for argument in args:
        if joined and re.match(r'-\.?[0-9]', argument) and ',' in argument and re.fullmatch('--[a-z-]+', joined[-1]):
            joined[-1] += f'={argument}'
        else:
            joined.append(argument)
    return joined


def tell_error(prog: str, error: object) -> None:
    print(f'{prog}: error: {one_line(str(error))}', file=sys.stderr, flush=True)


def tell_errors(prog: str, work: Callable[[], int]) -> int:
    """Return the exit status of `work`.

    After one line, it is 2 for what the user can mend, and 130 when interrupted; it is 141 if nobody reads on.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except BrokenPipeError:      # as of `imago doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except (ValueError, OSError) as error:
        tell_error(prog, error)
        return 2
    except KeyboardInterrupt:
        print(f'{prog}: interrupted', file=sys.stderr, flush=True)
        return INTERRUPTED
