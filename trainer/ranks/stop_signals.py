"""SIGTERM, SIGINT and SIGUSR1 ask for a checkpoint and a clean exit."""

import signal
from multiprocessing import resource_tracker
from types import FrameType

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)


def hold_signals() -> None:
    """Keep schedulers' signals pending until a `StopSignals` is entered: one that comes while a run starts is not lost.

    Processes that are started meanwhile never see them. Schedulers send them to every process.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SCHEDULERS)
    resource_tracker.ensure_running()   # now, as it would die of a SIGUSR1; and it unblocks SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, SCHEDULERS)


class StopSignals:
    """While entered, remembers that a signal came. Repeats change nothing: torchrun forwards what the terminal sent too."""

    requested = False

    def __enter__(self) -> 'StopSignals':
        self._before = {number: signal.signal(number, self._remember) for number in (*SCHEDULERS, signal.SIGINT)}
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SCHEDULERS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
