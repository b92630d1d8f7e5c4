"""All ranks use the same kernels: a run must not depend on how the kernels of one rank, whose build failed, round."""

from collections.abc import Callable
from typing import TypeVar

from imago.kernels import library
from imago.kernels.build import BuildError
from imago.trainer.ranks import dist

T = TypeVar('T')


def agree_on_kernels(device_type: str) -> str:
    """Settle and name what serves on all ranks from now on: compiled kernels, or plain PyTorch if one rank lacks them.

    All ranks call it together. It may build the kernels. Raises ValueError, on all ranks, if plain PyTorch would have to serve
    and IMAGO_KERNELS=strict forbids that.
    """
    with dist.patience('compiling kernels'):
        reasons = _of_all(library.why_none, device_type)
    lacking = [rank for rank, reason in enumerate(reasons) if reason]
    if 0 < len(lacking) < len(reasons):
        library.keep_to_reference(device_type, reasons[lacking[0]])
        dist.print0(f'plain PyTorch serves on all {len(reasons)} ranks, slower and rounding differently, as rank {lacking[0]} '
                    f'has no compiled {device_type} kernels: {reasons[lacking[0]]}')
    return ', '.join(dict.fromkeys(_of_all(library.backend, device_type)))


def _of_all(question: Callable[[str], T], device_type: str) -> list[T]:
    def answer() -> T:
        try:
            return question(device_type)
        except BuildError as error:     # it is a RuntimeError, which would end this rank alone
            raise ValueError(str(error)) from error
    return dist.gather(dist.together(answer))
