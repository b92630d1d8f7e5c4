"""How far long work has come, on stderr: a bar on a terminal; in a log or a notebook a line now and then."""

import sys
import time

from tqdm import tqdm

from imago.trainer.ranks import dist

SECONDS = 20.0   # between lines: shorter work says nothing


class Progress:
    """For `with`. Only rank 0 tells."""

    def __init__(self, title: str | None, total: int, unit: str) -> None:
        """title: None tells nothing."""
        told, terminal = title is not None and dist.is_main(), sys.stderr.isatty()
        self._title, self._total, self._unit, self._done, self._lines = title, total, unit, 0, told and not terminal
        self._bar = tqdm(total=total, desc=title, unit=unit, leave=False, disable=not (told and terminal))
        self._began = self._last = time.monotonic()

    def add(self, count: int = 1) -> None:
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._lines and now - self._last >= SECONDS:
            self._last = now
            print(f'{self._title}: {self._done} of {self._total} {self._unit} in {now - self._began:.0f} s', file=sys.stderr,
                  flush=True)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
