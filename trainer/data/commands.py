"""A program's output is read here like a file. The program must not fall silent for long, and is killed with its reader."""

import atexit
import os
import select
import signal
import subprocess
import threading
from contextlib import suppress

from imago.trainer.ranks.stop_signals import undivided

SILENCE = 60    # seconds without a byte, as for HTTP
_running: set['Command'] = set()
_starting = threading.RLock()    # held until a program that has begun is in `_running`


class Command:
    """This is the output of a program. A program that is left early or silent too long is killed with all that it started."""

    def __init__(self, arguments: list[str]):
        # a session of its own is a process group that can be killed, and has no terminal to ask for a password
        with undivided(), _starting:
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
            _running.add(self)
        self._waiting = select.poll()
        self._waiting.register(self._process.stdout, select.POLLIN)

    def read(self, most: int) -> bytes:
        """Return at most `most` bytes, as they come; b'' at the end. Raises OSError for a program that is silent or fails."""
        if not self._waiting.poll(SILENCE * 1000):
            raise TimeoutError(f'no byte came for {SILENCE} seconds')
        data = os.read(self._process.stdout.fileno(), most)
        if not data:
            self._finish()
        return data

    def _finish(self) -> None:
        try:
            status = self._process.wait(SILENCE)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f'the command did not end within {SILENCE} seconds after its last byte') from error
        if status:
            raise OSError(f'the command ended with exit status {status}' if status > 0 else f'signal {-status} ended the command')

    def kill(self) -> None:
        if self._process.returncode is None:   # later its group's number may be another's
            with suppress(ProcessLookupError, PermissionError):   # it has ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.stdout.close()
        self._process.wait()
        _running.discard(self)

    def __enter__(self) -> 'Command':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kill_commands() -> None:
    """Kill the programs of this process that still run, before it ends without closing them. No other can start any more."""
    _starting.acquire()
    for command in list(_running):
        command.kill()


atexit.register(kill_commands)
