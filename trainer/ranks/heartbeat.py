"""Ranks tell one another which of them stands still and which one failed, through the store at which they met."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.distributed import DistError, TCPStore

from imago.trainer.command import tell_error

_FAILURE = 'imago/failure'


@dataclass(frozen=True)
class Place:
    """This says where a rank is."""

    beat: int          # it grows as long as the process runs
    moves: int         # it is the same for all ranks at the same point of the program
    still: float       # seconds since the last move
    patient: bool      # the rank may take as long as its process lives
    where: str
    host: str


class Heartbeat:
    """The heartbeat publishes this rank's place, and ends the process when it has waited in vain for another.

    Only a standstill of `limit` seconds makes it look at the others, so a step may take its time. The clock is monotonic,
    and does not count the time that the process was stopped.
    """

    def __init__(self, address: tuple[str, int], rank: int, world: int, limit: float):
        """`address` is that of the TCPStore at which the ranks met; `limit` is in seconds."""
        self._address, self._rank, self._world, self._limit = address, rank, world, limit
        self._interval = min(limit / 10, 5.0)
        self._where, self._patient, self._moves, self._steps = 'the start', True, 0, 0
        self._still = self._unanswered = 0.0    # seconds
        # each thread has its own connection: a call that waits would hold up the others
        self._store, talking = (TCPStore(*address, is_master=False, wait_for_workers=False) for _ in range(2))
        if rank == 0:
            self._store.delete_key(_FAILURE)    # an earlier attempt may have left it: a launcher's store lives longer
        self._publish(talking, 0)
        self._ended = threading.Event()
        # there are two threads, as a store that is stopped never answers, whatever time-out it was given
        self._threads = [threading.Thread(target=self._talk, args=(talking,), daemon=True),
                         threading.Thread(target=self._watch, daemon=True)]
        for thread in self._threads:
            thread.start()

    def begin_step(self, nimg: int) -> None:
        """Note that a step begins. The first one compiles and fetches shards: it may take as long as the process lives."""
        self._steps += 1
        self._patient = self._steps == 1
        self.move(f'{nimg} images (reading pictures)')

    def move(self, where: str | None = None) -> None:
        """Note progress that all ranks make in the same order: a phase begins, or a collective is entered."""
        self._moves += 1
        self._where = where or self._where

    @contextmanager
    def patience(self, where: str) -> Iterator[None]:
        """Enter this around work that may take as long as the process lives."""
        before = self._where, self._patient
        self._patient = True
        self.move(where)
        try:
            yield
        finally:
            self._where, self._patient = before
            self.move()

    def fail(self, message: str, status: int) -> None:
        """Tell the others why this rank ends. The first to tell is believed."""
        try:
            self._store.compare_set(_FAILURE, '', json.dumps([self._rank, message, status]))
        except DistError as error:    # the store has gone with rank 0, which the others notice too
            print(f'rank {self._rank} could not tell the others: {error}', file=sys.stderr)

    def failure(self) -> tuple[str, int]:
        """Return in one line why this rank lost the others, and the exit status that fits."""
        try:
            if not self._store.check([_FAILURE]):
                return 'another rank is gone without a word: it was killed, or its machine was lost', 1
            rank, message, status = json.loads(self._store.get(_FAILURE))
            return f'stopped because rank {rank} failed: {message}', status
        except DistError:
            return f'{self._holder()} is gone', 1

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(self._interval)

    def _watch(self) -> None:
        """Measure how long this rank stands still."""
        moves, last = -1, time.monotonic()
        while not self._ended.wait(self._interval):
            now = time.monotonic()
            waited = min(now - last, 2 * self._interval)    # a stopped process has not waited
            self._still = self._still + waited if self._moves == moves else 0.0
            self._unanswered += waited
            moves, last = self._moves, now
            if self._still >= self._limit and self._unanswered >= self._limit / 2:
                self._end(f'{self._holder()}, has not moved for {self._limit:g} seconds: it does not answer', 1)

    def _talk(self, store: TCPStore) -> None:
        """Publish this rank's place, and look at the others while it stands still."""
        beat, looks, earlier = 0, 0, []
        while not self._ended.wait(self._interval):
            beat, still = beat + 1, self._still
            try:
                self._publish(store, beat)
                if still > 2 * self._interval and store.check([_FAILURE]):
                    self._end(*self.failure())
                looks = min(looks, int(still / (self._limit / 2)))    # each move sets it back to 0
                if still >= (looks + 1) * self._limit / 2:
                    looks, places = looks + 1, self._read(store)
                    verdict = judge(earlier, places, self._limit) if looks > 1 else None
                    if verdict:
                        self.fail(verdict, 1)
                        self._end(verdict, 1)
                    earlier = places
            except DistError:    # the store is gone; if this rank still needs it, `_watch` will tell
                return
            self._unanswered = 0.0

    def _holder(self) -> str:
        return f'rank 0, or its launcher, on {self._address[0]}'

    def _publish(self, store: TCPStore, beat: int) -> None:
        place = beat, self._moves, self._still, self._patient, self._where, socket.gethostname()
        store.set(f'imago/place/{self._rank}', json.dumps(place))

    def _read(self, store: TCPStore) -> list[Place]:
        return [Place(*json.loads(text)) for text in store.multi_get([f'imago/place/{rank}' for rank in range(self._world)])]

    def _end(self, message: str, status: int) -> None:
        tell_error('imago train', message)
        os._exit(status)    # the main thread stands in a collective that may never return


def judge(earlier: list[Place], places: list[Place], limit: float) -> str | None:
    """Name the rank that the others wait for, by two looks that are `limit` / 2 seconds apart; None while all may still go on.

    It is a rank whose process is silent; else one of those with the fewest moves, if they have made none for `limit` seconds.
    """
    silent = [rank for rank, (before, now) in enumerate(zip(earlier, places, strict=True)) if before.beat == now.beat]
    if silent:
        return _accuse(silent[0], places, 'its process is stopped, or its machine is lost')
    fewest = min(place.moves for place in places)
    behind = [rank for rank, place in enumerate(places) if place.moves == fewest]
    if any(places[rank].patient or places[rank].still < limit for rank in behind):
        return None
    if len(behind) == len(places):
        return f'no rank has moved since {places[0].where}: they wait for one another; look at the network between them'
    return _accuse(behind[0], places, 'its process runs, but hangs')


def _accuse(rank: int, places: list[Place], why: str) -> str:
    return f'rank {rank} on {places[rank].host} has not moved since {places[rank].where}: {why}'
