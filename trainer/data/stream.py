"""The stream gives batches for ever, in the order of `order.py`, from any image on. Worker processes or this one decode."""

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from imago.trainer.data.commands import kill_commands
from imago.trainer.data.manifest import TWO_DOMAINS
from imago.trainer.data.order import Order, batch_indices
from imago.trainer.data.shards import Dataset, Sample, SampleReader, ShardError, check_resolution
from imago.trainer.ranks.stop_signals import StopSignal, interruptible


@dataclass(frozen=True)
class Batch:
    """A batch is one rank's part of a step.

    `keys` name the samples shown (KEY_OF_A+KEY_OF_B for two datasets), `damaged` those passed over, with the reasons.
    """

    pictures: dict[str, torch.Tensor]   # domain -> [NCHW] uint8
    labels: torch.Tensor  # [N] int64, 0 where the dataset has none
    keys: list[str]
    nimg: int             # global index of the step's first image
    damaged: list[str]
    rank: int
    world: int            # number of ranks that share the step
    conditions: torch.Tensor | None = None   # [N, d] or [N, T, d] float32, None where the dataset has none
    drawn_conditions: torch.Tensor | None = None   # of other samples, chosen by the index, for fakes

    def pin_memory(self) -> 'Batch':  # called by DataLoader
        return self._with_tensors(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> 'Batch':
        """Return the batch with its pictures, labels and conditions on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_tensors(self, of: Callable[[torch.Tensor], torch.Tensor]) -> 'Batch':
        pictures = {domain: of(images) for domain, images in self.pictures.items()}
        conditions, drawn = (None if own is None else of(own) for own in (self.conditions, self.drawn_conditions))
        return replace(self, pictures=pictures, labels=of(self.labels), conditions=conditions, drawn_conditions=drawn)


@dataclass(frozen=True)
class Show:
    """This shows a dataset in an order of its own."""

    order: Order
    reader: SampleReader

    def samples(self, indices: list[int], together: int, flip: bool) -> tuple[list[Sample], list[str]]:
        """Return the samples that are shown at global image indices, and the damaged ones that were passed over.

        Each `together` samples in a row are of one class. The pictures of a sample are flipped and cropped alike.
        """
        samples, damaged, shard = [], [], 0
        for position, index in enumerate(indices):
            place = self.order.place(index)
            if position % together:   # a partner of the last sample replaces the picture that is due
                sample, passed_over = self.reader.read_partner(shard, samples[-1], self.order.partner(index), place)
            else:
                shard, number = self.order.locate(index)
                sample, passed_over = self.reader.read(shard, number, place)
            if flip and self.order.flip(index):
                sample = replace(sample, pictures={domain: image[:, ::-1] for domain, image in sample.pictures.items()})
            samples.append(sample)
            damaged += passed_over
        return samples, damaged

    def lent(self, index: int) -> np.ndarray:
        """Return the condition, float32 [d] or [T, d], of another sample in the shard of global image `index`.

        One shard is enough to draw from, since packing mixes the samples.
        """
        return self.reader.condition(self.order.locate(index)[0], self.order.lender(index))


@dataclass(frozen=True)
class Steps(torch.utils.data.Dataset):
    """This maps (global index of a step's first image, number of images) to this rank's batch. Any worker may do it."""

    dataset: Dataset      # its `b` is shown beside it, if there is one
    lanes: int
    seed: int
    rank: int
    world: int
    resolution: tuple[int, int]
    flip: bool
    together: int

    @cached_property
    def shows(self) -> list[tuple[tuple[str, ...], Show]]:
        """Each dataset's `Show`, with the domains that its pictures have here."""
        most = self.lanes // self.world + 2     # shards open at a time
        names = [TWO_DOMAINS[:1], TWO_DOMAINS[1:]] if self.dataset.b else [self.dataset.domains]
        orders = orders_of(self.dataset, self.lanes, self.seed)
        readers = [SampleReader(dataset, self.resolution, most) for dataset in (self.dataset, self.dataset.b) if dataset]
        return list(zip(names, map(Show, orders, readers), strict=True))

    def __getitem__(self, step: tuple[int, int]) -> Batch:
        nimg, batch = step
        indices = batch_indices(nimg, batch, self.lanes, self.rank, self.world).tolist()
        pictures, shown, damaged = {}, [], []
        for domains, show in self.shows:
            samples, passed_over = show.samples(indices, self.together, self.flip)
            shown.append(samples)
            damaged += [f'{domains[0]}: {text}' if self.dataset.b else text for text in passed_over]
            for domain, images in zip(domains, zip(*(sample.pictures.values() for sample in samples))):
                # In a worker, default_collate stacks straight into the memory that the training process will see.
                pictures[domain] = default_collate([torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images])
        labels = default_collate([sample.label for sample in shown[0]])
        keys = ['+'.join(sample.key for sample in samples) for samples in zip(*shown)]
        conditions = drawn = None
        if self.dataset.manifest.condition_shape:
            conditions = default_collate([torch.tensor(sample.condition) for sample in shown[0]])
            drawn = default_collate([torch.tensor(self.shows[0][1].lent(index)) for index in indices])
        return Batch(pictures, labels, keys, nimg, damaged, self.rank, self.world, conditions, drawn)


def orders_of(dataset: Dataset, lanes: int, seed: int) -> list[Order]:
    """Return the orders of the dataset and of the one beside it, which has a seed of its own.

    Raises ValueError if one has fewer samples than lanes.
    """
    orders = [Order(dataset.manifest, lanes, seed)]
    return orders + [Order(dataset.b.manifest, lanes, f'{seed}/b')] if dataset.b else orders


def stream(dataset: Dataset, *, batch: int | Callable[[int], int], lanes: int, seed: int, rank: int, world: int, nimg: int,
           resolution: tuple[int, int], flip: bool, workers: int, prefetch: int = 2,
           pin_memory: bool = False, together: int = 1) -> Generator[Batch]:
    """Return an iterator over this rank's part of each global batch, from global image `nimg` (a multiple of `lanes`) on.

    `batch` is the number of images in a global batch, or a function of the images shown before it. What is shown of a picture
    is resized to `resolution`, (height, width) in pixels. Each `together` pictures in a row are of the class of the first.
    `workers` processes start at once and decode, each `prefetch` batches ahead; with 0 workers this process decodes. The
    iterator's `close()` ends them. Raises ValueError at the call for what cannot be streamed; while iterating, ShardError for
    a shard that cannot be read and RuntimeError for a worker that died.
    """
    check_resolution(dataset, resolution)
    batch_at = batch if callable(batch) else lambda shown: batch
    batch_indices(nimg, batch_at(nimg), lanes, rank, world)
    orders_of(dataset, lanes, seed)
    steps = Steps(dataset, lanes, seed, rank, world, (resolution[0], resolution[1]), flip, together)
    ear, mouth = multiprocessing.Pipe(duplex=False)   # the workers listen at `ear`; this process speaks at `mouth`
    loader = DataLoader(
        steps, batch_size=None, sampler=_steps(nimg, batch_at), num_workers=workers,
        prefetch_factor=prefetch if workers else None, pin_memory=pin_memory, worker_init_fn=partial(_start_worker, ear),
        # fork is unsafe beside OpenMP and CUDA threads; forkserver's server dies of a SIGTERM to the process group.
        multiprocessing_context='spawn' if workers else None,
        generator=torch.Generator())  # without one of its own, DataLoader draws from the global one
    loading = iter(loader)
    if workers:
        atexit.register(_end_workers, weakref.ref(loading))
    return _batches(loading, workers, any(one.source.remote for one in (dataset, dataset.b) if one), mouth)


def _steps(nimg: int, batch_at: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    while True:
        batch = batch_at(nimg)
        yield nimg, batch
        nimg += batch


def _batches(batches: Any, workers: int, remote: bool, mouth: Connection) -> Generator[Batch]:
    """Yield what an iterator of a DataLoader gives."""
    try:
        with interruptible() if remote else nullcontext():
            first = next(batches)
        yield first
        yield from batches
    except StopSignal:
        with suppress(BrokenPipeError):   # there are no workers
            mouth.send_bytes(b'end')      # workers ignore all signals, and one may wait in a fetch
        raise
    except ShardError as error:
        # DataLoader puts a worker's whole traceback into the message; the last line is the error
        raise ShardError(str(error).strip().splitlines()[-1].rpartition('ShardError: ')[2]) from None
    except (ConnectionError, EOFError) as error:
        raise RuntimeError(f'DataLoader worker died while it handed over a batch ({error!r})') from error
    finally:
        if workers:
            # Its __del__ may come too late: if the iterator is collected in a cycle, say with an error's traceback, the queues
            # by which __del__ stops the workers are closed before it.
            batches._shutdown_workers()


def _end_workers(reference: weakref.ref) -> None:
    """End the workers at exit, before multiprocessing waits for them: they ignore its SIGTERM.

    The loader may still be alive then, as a traceback may hold it.
    """
    loading = reference()
    if loading is not None:
        loading._shutdown_workers()


def _start_worker(ear: Connection, _: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the training process decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # DataLoader's own watch for a lost parent looks only between batches.
    threading.Thread(target=_end_when_told, args=(ear,), daemon=True).start()
    # A spawned interpreter that finalises while torch's queue thread copies a batch aborts.
    atexit.register(os._exit, 0)


def _end_when_told(ear: Connection) -> None:
    """End this worker at a message, which stays in the pipe for the others, or when the parent's death closes the pipe."""
    ear.poll(None)
    kill_commands()
    os._exit(0)
