"""Who am I among the processes, and the small collectives that are not gradients. All safe with one process."""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed
from accelerate import PartialState

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _PR_SET_PDEATHSIG = -1, -3, 1
T = TypeVar('T')
_control: torch.distributed.ProcessGroup | None = None


def init(device: str) -> None:
    """Join the processes that torchrun started, if any, and choose this rank's device: 'auto', 'cpu' or 'cuda'."""
    global _control
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('device=cuda, but torch sees no CUDA device; use device=cpu, or see imago doctor')
    local_world = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if device != 'cpu' and 0 < torch.cuda.device_count() < local_world:
        raise ValueError(f'{local_world} processes on this machine, but only {torch.cuda.device_count()} GPUs; '
                         'start one a GPU, or use device=cpu')
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        _die_with_parent()
    cpu = device == 'cpu' or not torch.cuda.is_available()
    if cpu:
        _keep_large_allocations()
    process = PartialState(cpu=cpu)
    # accelerate without cpu=True can silently make every rank a world of one
    assert process.num_processes == int(os.environ.get('WORLD_SIZE', 1)), 'accelerate and torchrun disagree on the world'
    # small messages travel on a group of their own, on the CPU, whatever the gradients use
    _control = new_group()


def device() -> torch.device:
    """This rank's device; only after `init`."""
    return PartialState().device


def rank() -> int:
    return int(os.environ.get('RANK', 0))


def world_size() -> int:
    return int(os.environ.get('WORLD_SIZE', 1))


def is_main() -> bool:
    return rank() == 0


def print0(*words: object) -> None:
    if is_main():
        print(*words, flush=True)


def new_group() -> torch.distributed.ProcessGroup | None:
    """A gloo group of all ranks, for messages that must not mix with others; None with one process."""
    return torch.distributed.new_group(backend='gloo') if torch.distributed.is_initialized() else None


def barrier() -> None:
    if _control is not None:
        torch.distributed.barrier(_control)


def any_rank(flag: bool) -> bool:
    """True on all ranks as soon as `flag` is true on one."""
    if _control is None:
        return flag
    value = torch.tensor(int(flag))
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX, group=_control)
    return bool(value)


def gather(value: object, group: torch.distributed.ProcessGroup | None = None) -> list:
    """The picklable `value` of each rank, in order of rank, on all ranks."""
    if _control is None:
        return [value]
    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value, group=group or _control)
    return values


def together(work: Callable[[], T], main_only: bool = False) -> T | None:
    """Do local `work` on each rank (or on rank 0 alone); a ValueError or OSError on one is raised on all, before anyone goes on."""
    result, error = None, None
    try:
        if is_main() or not main_only:
            result = work()
    except (ValueError, OSError) as caught:
        error = caught
    messages = gather(error and str(error))
    for failed, message in enumerate(messages):
        if message is not None:
            raise error or ValueError(f'rank {failed}: {message}')
    return result


def shutdown() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _die_with_parent() -> None:
    """A worker whose torchrun was killed would go on training and saving beside its successor."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_large_allocations() -> None:
    """Let glibc reuse large blocks: page faults on fresh activations otherwise dominate training on a CPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
