"""SIGTERM, SIGINT and SIGUSR1 ask for a checkpoint and a clean exit."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
ALL = (*SCHEDULERS, signal.SIGINT)
_starting = False    # true in a process that holds signals, until its first step
_asked = False       # whether a signal has come
_late: list[int] | None = None    # signals that came inside `undivided`


class StopSignal(Exception):
    """A signal came while a run that had not begun waited for data from elsewhere: there is nothing to save."""


def hold_signals() -> None:
    """Keep schedulers' signals pending until a `StopSignals` is entered, so that one that comes while a run starts is not lost.

    Schedulers send them to every process; those that are started meanwhile never see them.
    """
    global _starting
    _starting = True
    signal.pthread_sigmask(signal.SIG_BLOCK, SCHEDULERS)
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    resource_tracker.ensure_running()   # it starts now, as a SIGUSR1 would kill it; and it unblocks SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, SCHEDULERS)
    signal.signal(signal.SIGTERM, before)
    if came:
        os.kill(os.getpid(), signal.SIGTERM)   # it pends again


@contextmanager
def interruptible() -> Iterator[None]:
    """Enter this around a wait for data from elsewhere: until a run's first step a signal, even a held one, raises StopSignal."""
    if not _starting or threading.current_thread() is not threading.main_thread():
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = {number: signal.signal(number, _interrupt) for number in ALL}
    try:
        if _asked:
            raise StopSignal('a signal came')
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SCHEDULERS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undivided() -> Iterator[None]:
    """Enter this around what must not be torn, such as starting a process and noting it: StopSignal is raised at its end."""
    global _late
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _late = []
    try:
        yield
    finally:
        late, _late = _late, None
    if late:
        _interrupt(late[0], None)


def asked_to_stop() -> bool:
    """Return whether a signal has come since the process began, or is held."""
    return _asked or not signal.sigpending().isdisjoint(SCHEDULERS)


class StopSignals:
    """While entered, this remembers that a signal came. Repeats change nothing: torchrun forwards what the terminal sent too."""

    requested = False

    def __enter__(self) -> 'StopSignals':
        self._before = {number: signal.signal(number, self._remember) for number in ALL}
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SCHEDULERS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin_step(self) -> None:
        """Let signals from now on wait for the end of a step, whatever the step waits for."""
        global _starting
        _starting = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        global _asked
        self.requested = _asked = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    if _late is not None:
        _late.append(number)
        return
    raise StopSignal(f'{signal.Signals(number).name} came')
