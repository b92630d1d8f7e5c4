"""SIGTERM and SIGINT ask for a checkpoint and a clean exit."""

import signal
from types import FrameType


class StopSignals:
    """While entered, remembers that a signal came. Repeats change nothing: torchrun forwards what the terminal sent too."""

    requested = False

    def __enter__(self) -> 'StopSignals':
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
