"""Stands in for sbatch, srun and scontrol: `python slurm_for_tests.py COMMAND ARGUMENTS`. All nodes are this machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

LOG = 'FAKE_SLURM_LOG'


def install(folder: Path) -> dict[str, str]:
    """Put the commands into `folder`. Returns the environment of a job of two nodes, with them in front."""
    folder.mkdir()
    for name in ('sbatch', 'srun', 'scontrol'):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)
    return os.environ | {
        'PATH': f'{folder}:{os.environ["PATH"]}', 'PYTHONPATH': str(Path(__file__).parents[2]), LOG: str(folder / 'log'),
        'SLURM_JOB_ID': str(os.getpid()), 'SLURM_NNODES': '2', 'SLURM_JOB_NUM_NODES': '2', 'SLURM_NTASKS': '2',
        'SLURM_JOB_NODELIST': 'localhost'}


def log(*words: str) -> None:
    with open(os.environ[LOG], 'a') as file:
        print(*words, file=file)


def srun(arguments: list[str]) -> int:
    """A task a node; a signal goes to every process of every task, as Slurm's does. Returns the largest status."""
    while arguments[0].startswith('--'):
        arguments = arguments[1:]
    tasks = []

    def forward(number: int, _: object) -> None:
        log('forwarded', signal.Signals(number).name)
        for process in [process for task in tasks for process in (*psutil.Process(task.pid).children(recursive=True), task)]:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, forward)
    for node in range(int(os.environ['SLURM_NNODES'])):
        identity = {'SLURM_NODEID': str(node), 'SLURM_PROCID': str(node), 'SLURM_LOCALID': '0'}
        tasks.append(subprocess.Popen(arguments, env=os.environ | identity, start_new_session=True))
    statuses = [task.wait() for task in tasks]
    log('statuses', *map(str, statuses))
    return max(status if status >= 0 else 128 - status for status in statuses)


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ['show', 'hostnames']:
        print(arguments[2])
    else:
        log(*arguments)
    return 0


def sbatch(arguments: list[str]) -> int:
    log('submitted', *arguments)
    print('Submitted batch job 77')
    return 0


if __name__ == '__main__':
    sys.exit({'srun': srun, 'scontrol': scontrol, 'sbatch': sbatch}[sys.argv[1]](sys.argv[2:]))
