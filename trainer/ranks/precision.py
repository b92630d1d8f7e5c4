"""How a GPU computes in float32, and whether a start repeats the bits of another. Nothing here concerns CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def set_precision(device_type: str, *, tf32: bool = False, cudnn_benchmark: bool = False, deterministic: bool = True) -> None:
    """Set how this process computes on a GPU; device_type: its device's, and only `cuda` changes anything.

    tf32: whether float32 convolutions, and their gradients, read 10 bits of each fraction, as PyTorch lets them by default.
    Matrix products never do: styles and logits come from these, and flags that hold in a forward pass would not in its backward.
    cudnn_benchmark: each new shape is timed, and the fastest way is taken, which may be another one at the next start.
    deterministic: cuDNN takes only ways that add in the same order each time.
    """
    if device_type != 'cuda':
        return
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cudnn.deterministic = deterministic


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, convolutions read all bits of float32, for scores that must not depend on how a run trains. No gradients inside."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def describe_promise(*, cudnn_benchmark: bool, deterministic: bool) -> str:
    """Tell what a resume on the same number of the same GPUs repeats, in a line for people."""
    if deterministic and not cudnn_benchmark:
        return 'resume is exact, bit for bit'
    why = 'precision.cudnn_benchmark=true may choose another way to convolve at each start' if cudnn_benchmark else \
        'precision.deterministic=false lets cuDNN add in any order'
    return f'resume is exact up to the order of sums, since {why}'
