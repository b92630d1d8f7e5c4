"""A process learns here which rank it is, and sends all that is not gradients. Everything works with one process too."""

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from accelerate import PartialState

from imago.trainer.ranks.device import check_device
from imago.trainer.ranks.heartbeat import Heartbeat
from imago.trainer.ranks.stop_signals import StopSignal
from imago.trainer.ranks.world import is_main, print0, rank, world_size  # noqa: F401, as callers say dist.print0

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _PR_SET_PDEATHSIG = -1, -3, 1
T = TypeVar('T')
_LAST_RESORT = 6    # the backend's time limit, as a multiple of our own: the backend cannot tell a slow rank from a lost one
_control: torch.distributed.ProcessGroup | None = None
_heartbeat: Heartbeat | None = None


def init(device: str, timeout_minutes: float = 10.0) -> None:
    """Join the processes that torchrun started, if any, and choose this rank's device, see `check_device`.

    A rank that keeps the others waiting for `timeout_minutes` without a reason is named, and all end with status 1.
    """
    global _control, _heartbeat
    cpu = check_device(device) == 'cpu'
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        _die_with_parent()
    if cpu:
        _keep_large_allocations()
    joined = torch.distributed.is_initialized()
    process = PartialState(cpu=cpu, timeout=timedelta(minutes=_LAST_RESORT * timeout_minutes))
    # accelerate without cpu=True can silently make every rank a world of one
    assert process.num_processes == int(os.environ.get('WORLD_SIZE', 1)), 'accelerate and torchrun disagree on the world'
    if world_size() > 1 and not joined:
        store = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
        _heartbeat = Heartbeat(store, rank(), world_size(), 60 * timeout_minutes)
    # small messages travel on a group of their own, on the CPU, whatever the gradients use
    _control = new_group()


def device() -> torch.device:
    """Return this rank's device; `init` must come first."""
    return PartialState().device


def on_gpu() -> bool:
    """Return whether this rank works on a CUDA device. Before `init` it does not."""
    return bool(PartialState._shared_state) and device().type == 'cuda'


def new_group() -> torch.distributed.ProcessGroup | None:
    """Return a gloo group of all ranks, for messages that must not mix with others; None with one process."""
    return torch.distributed.new_group(backend='gloo') if torch.distributed.is_initialized() else None


def begin_step(nimg: int) -> None:
    if _heartbeat is not None:
        _heartbeat.begin_step(nimg)


def moved(where: str | None = None) -> None:
    """Tell the heartbeat where this rank is now, or that it enters one more collective. All ranks do so in the same order."""
    if _heartbeat is not None:
        _heartbeat.move(where)


def patience(where: str) -> AbstractContextManager:
    """Enter this around work for which the others may wait as long as this process lives."""
    return nullcontext() if _heartbeat is None else _heartbeat.patience(where)


def tell_failure(message: str, status: int) -> None:
    """Tell the others, before this rank ends, why they will lose it."""
    if _heartbeat is not None:
        _heartbeat.fail(message, status)


def why_lost(error: Exception) -> tuple[str, int] | None:
    """Return one line and an exit status if a collective failed because another rank ended, else None."""
    # gloo raises RuntimeErrors that begin with a place in its source
    if not isinstance(error, torch.distributed.DistError) and 'third_party/gloo' not in str(error):
        return None
    if _heartbeat is None:
        return f'could not join the others: {str(error).splitlines()[0]}', 1
    return _heartbeat.failure()


def barrier() -> None:
    if _control is not None:
        moved()
        torch.distributed.barrier(_control)


def any_rank(flag: bool) -> bool:
    """Return True on all ranks if `flag` is true on one."""
    return any_rank_of([flag])[0]


def any_rank_of(flags: list[bool]) -> list[bool]:
    """Return for each of `flags` whether it is true on one rank. All ranks give equally many."""
    if _control is None:
        return flags
    moved()
    values = torch.tensor(flags, dtype=torch.int64)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=_control)
    return list(map(bool, values))


def gather(value: object, group: torch.distributed.ProcessGroup | None = None) -> list:
    """Return the picklable `value` of each rank, in order of rank, on all ranks."""
    if _control is None:
        return [value]
    if group is None:    # other groups belong to other threads
        moved()
    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value, group=group or _control)
    return values


def together(work: Callable[[], T], main_only: bool = False) -> T | None:
    """Do local `work` on each rank (or on rank 0 alone); a ValueError or OSError on one is raised on all, before anyone goes on.

    A StopSignal is raised on all as well: the signal of one rank is for all.
    """
    result, error = None, None
    try:
        if is_main() or not main_only:
            result = work()
    except (ValueError, OSError, StopSignal) as caught:
        error = caught
    failures = gather(error and (str(error), isinstance(error, StopSignal)))
    for failed, failure in enumerate(failures):
        if failure is not None:
            message, stopped = failure
            raise error or (StopSignal if stopped else ValueError)(f'rank {failed}: {message}')
    return result


def from_main(work: Callable[[], T]) -> T:
    """Return on all ranks the picklable result of `work` on rank 0; its ValueError or OSError is raised on all."""
    return gather(together(work, main_only=True))[0]


def shutdown() -> None:
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.close()
        _heartbeat = None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _die_with_parent() -> None:
    """Die with torchrun: a worker whose torchrun was killed would go on training and saving beside its successor."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'prctl'):    # only Linux has it
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_large_allocations() -> None:
    """Let glibc reuse large blocks: page faults on fresh activations otherwise dominate training on a CPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
