"""Who am I among the processes that torchrun started? The answers come from its environment, before torch is there."""

import os

from imago.trainer.command import tell_error


def rank() -> int:
    return int(os.environ.get('RANK', 0))


def world_size() -> int:
    return int(os.environ.get('WORLD_SIZE', 1))


def is_main() -> bool:
    return rank() == 0


def print0(*words: object) -> None:
    if is_main():
        print(*words, flush=True)


def refuse(prog: str, error: Exception) -> int:
    """Tell once what all ranks refuse alike, before they start to work together. Returns the exit status, 2."""
    if is_main():
        tell_error(prog, error)
    return 2
