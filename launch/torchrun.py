"""torchrun is run so that signals to stop go to its ranks, which checkpoint in their own time."""

import contextlib
import logging
import os
import signal
import sys
from types import FrameType

import psutil

from imago.trainer.command import tell_error
from imago.trainer.ranks.machine import usable_cores

STOPPED = 128 + signal.SIGTERM   # exit status of a run that is to be started again; schedulers tell it from a failure


def run_torchrun(ranks: int, arguments: list[str]) -> int:
    """Be torchrun with `ranks` processes here. Return 0, or the exit status of the rank that failed.

    A torchrun that gets SIGTERM gives its ranks 30 seconds and reports a failure, and SIGUSR1 kills it. Without signals it
    waits for the ranks' checkpoint and ends well, so they go to the ranks alone. Raises what its rendezvous raises.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _pass_on)
    # torchrun would give each process one thread
    os.environ.setdefault('OMP_NUM_THREADS', str(max(usable_cores() // ranks, 1)))
    # torch would report a lost node in stack traces; Imago says it in one line
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main
    # a rank that failed has said why, so torchrun need not report it
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    # torchrun takes $ in the ranks' arguments for its own macros
    own = arguments.index('-m')
    arguments = [*arguments[:own], *(text.replace('$', '$$') for text in arguments[own:])]
    try:
        main([f'--nproc-per-node={ranks}', '--signals-to-handle=SIGHUP,SIGQUIT', *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            tell_error('imago train', f'rank {rank} was killed by signal {-failure.exitcode}')
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


def _pass_on(number: int, _: FrameType | None) -> None:
    workers = psutil.Process().children()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)
    if not workers:   # the signal came before the ranks did, so nothing is lost
        sys.exit(STOPPED)
