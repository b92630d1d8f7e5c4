"""Training processes on this machine: one, or several through torchrun."""

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys

import psutil

_PR_SET_PDEATHSIG = 1


def train(arguments: list[str]) -> int:
    """Become `python -m trainer ARGUMENTS`, or with --gpus N > 1 run the same under torchrun. Returns its exit status."""
    parser = argparse.ArgumentParser(prog='imago train', add_help=False, allow_abbrev=False)
    parser.add_argument('--gpus', type=int, default=1)
    options, rest = parser.parse_known_args(arguments)
    if options.gpus < 1:
        print(f'imago train: error: --gpus {options.gpus} is below 1', file=sys.stderr)
        return 2
    if options.gpus == 1:
        os.execv(sys.executable, [sys.executable, '-m', 'trainer', *rest])
    # torchrun would give each process one thread
    os.environ.setdefault('OMP_NUM_THREADS', str(max((os.cpu_count() or 1) // options.gpus, 1)))
    return run_torchrun([f'--nproc-per-node={options.gpus}', '-m', 'trainer', *rest])


def run_torchrun(arguments: list[str]) -> int:
    """Run torchrun on this machine, and pass SIGTERM and SIGINT to its workers instead of to itself.

    torchrun would give them 30 seconds and report a failure; left alone it waits for their checkpoint and ends well.
    """
    command = [sys.executable, '-m', 'launch.local', '--standalone', *arguments]
    agent = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent)

    def pass_on(number: int, _: object) -> None:
        workers = psutil.Process(agent.pid).children() if agent.poll() is None else []
        for worker in workers:
            worker.send_signal(number)
        if not workers:   # it came before they did: nothing is lost
            agent.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    status = agent.wait()
    return status if status >= 0 else 128 - status


def agent(arguments: list[str]) -> int:
    """torchrun itself; a rank that failed has said why, so its exit status takes the place of torchrun's own report."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    try:
        main(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f'imago train: error: rank {rank} was killed by signal {-failure.exitcode}', file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == '__main__':
    sys.exit(agent(sys.argv[1:]))
