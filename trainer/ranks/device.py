"""Which device a rank computes on, what it has, and whether this machine has one that torch cannot use."""

import os
import shutil
from pathlib import Path

import psutil
import torch


def check_device(name: str) -> str:
    """'cpu', 'cuda' or 'mps': what `device` in a configuration (one of them, or 'auto') means here.

    `auto` takes an NVIDIA GPU (or an AMD one, which torch calls cuda too), else the CPU. ValueError if it cannot be had.
    """
    if name == 'mps':
        return check_apple()
    if name == 'cuda' and not torch.cuda.is_available():
        raise ValueError('device=cuda, but torch sees no CUDA device; use device=cpu, or see imago doctor')
    local_world = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if name != 'cpu' and 0 < torch.cuda.device_count() < local_world:
        raise ValueError(f'{local_world} processes on this machine, but only {torch.cuda.device_count()} GPUs; '
                         'start one a GPU, or use device=cpu')
    return 'cpu' if name == 'cpu' or not torch.cuda.is_available() else 'cuda'


def check_apple() -> str:
    """Return 'mps'. ValueError where torch sees no Apple GPU, which one process alone can use."""
    if not torch.backends.mps.is_available():
        raise ValueError('device=mps, but torch sees no Apple GPU; use device=cpu, or see imago doctor')
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise ValueError('device=mps takes one process; leave --gpus out')
    return 'mps'


def describe_device(kind: str) -> str:
    """What computes, for people: `NVIDIA H100`, or `CPU, 2 threads`."""
    if kind == 'mps':
        return 'Apple GPU, which we could not test: compare some pictures with device=cpu'
    return torch.cuda.get_device_name() if kind == 'cuda' else f'CPU, {torch.get_num_threads()} threads a process'


def memory_of(kind: str) -> int:
    """Bytes that one rank may have: its GPU's, or its share of this machine's."""
    if kind == 'cuda':
        return torch.cuda.get_device_properties().total_memory
    return psutil.virtual_memory().total // int(os.environ.get('LOCAL_WORLD_SIZE', 1))


def unused_gpu() -> str:
    """A line on a GPU that this machine has and torch cannot use; '' if there is none."""
    if torch.cuda.is_available() or not (Path('/dev/nvidia0').exists() or shutil.which('nvidia-smi')):
        return ''
    if os.environ.get('CUDA_VISIBLE_DEVICES', 'all') in ('', '-1'):
        return 'this machine has an NVIDIA GPU, which CUDA_VISIBLE_DEVICES hides'
    why = 'was built without CUDA' if torch.version.cuda is None else f'needs a driver for CUDA {torch.version.cuda}'
    return f'this machine has an NVIDIA GPU, but torch {torch.__version__} {why}: the CPU computes; see imago doctor'
