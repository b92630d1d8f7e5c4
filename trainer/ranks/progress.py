"""Long work shows its progress on stderr: by a bar on a terminal, by a line now and then in a log or a notebook."""

import sys
import time

from tqdm import tqdm

from imago.trainer.ranks import dist

SECONDS = 20.0   # between lines; shorter work prints none


class Progress:
    """Use it in a `with` statement. Only rank 0 prints."""

    def __init__(self, title: str | None, total: int, unit: str) -> None:
        """Nothing is printed if `title` is None."""
        told, terminal = title is not None and dist.is_main(), sys.stderr.isatty()
        self._title, self._total, self._unit, self._done, self._lines = title, total, unit, 0, told and not terminal
        self._bar = tqdm(total=total, desc=title, unit=unit, leave=False, disable=not (told and terminal))
        self._began = self._last = time.monotonic()

    def add(self, count: int = 1) -> None:
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        spent = now - self._began
        left = spent * (self._total / self._done - 1)
        # the first part tells how long all will take
        if self._lines and (now - self._last >= SECONDS or self._done == count and left >= SECONDS):
            self._last = now
            print(f'{self._title}: {self._done} of {self._total} {self._unit} in {spent:.0f} s, about {left:.0f} s left',
                  file=sys.stderr, flush=True)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
