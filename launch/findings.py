"""What this machine has, and what each finding means for a run."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
import torch.distributed

from imago import kernels
from imago.kernels.build import BuildError, find_compiler, find_nvcc
from imago.trainer.config.shipped import names
from imago.trainer.ranks.device import unused_gpu

TESTED_TORCH = ('2.11', '2.15')   # from the first, below the second
PACKAGES = ('accelerate', 'webdataset', 'tensorboard', 'pillow', 'numpy', 'pydantic', 'safetensors')


def findings() -> Iterator[tuple[str, str, str]]:
    """Yield (subject, what there is, what it means for a run)."""
    new = sys.version_info >= (3, 11)
    yield 'python', platform.python_version(), 'fine' if new else 'too old: 3.11 or later is needed'
    yield 'torch', torch.__version__, _judge_torch(torch.__version__)
    for name in PACKAGES:
        yield name, *_package(name)
    yield from _devices()
    yield 'C++ compiler', *_tool(find_compiler, 'CPU')
    yield 'nvcc', *_tool(find_nvcc, 'CUDA')
    yield from _kernels()
    yield from _collectives()
    for name, folder in (('disk here', '.'), ('temporary files', tempfile.gettempdir())):
        free = shutil.disk_usage(folder).free / 1e9
        yield name, f'{free:.1f} GB free', 'imago train CONFIG --dry-run says what a run needs'
    yield 'configs', ', '.join(names()), 'names that imago train takes'


def _judge_torch(version: str) -> str:
    found = tuple(int(part) for part in version.split('.')[:2])
    low, high = (tuple(int(part) for part in bound.split('.')) for bound in TESTED_TORCH)
    return 'in the tested range' if low <= found < high else f'untested: {TESTED_TORCH[0]} up to {TESTED_TORCH[1]} were'


def _package(name: str) -> tuple[str, str]:
    try:
        return importlib.metadata.version(name), 'fine'
    except importlib.metadata.PackageNotFoundError:
        return 'missing', f'nothing works without it: pip install {name}'


def _devices() -> Iterator[tuple[str, str, str]]:
    threads = torch.get_num_threads()
    yield 'CPU', f'{os.cpu_count()} cores, {threads} threads', 'enough for the demo and for 64 px; larger wants a GPU'
    if not torch.cuda.is_available():
        yield 'GPU', 'none that torch sees', unused_gpu() or 'runs use the CPU (device=auto or device=cpu)'
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = 'bf16 and fp16' if gpu.major >= 8 else 'fp16 only: set network.low_precision=fp16'
        yield f'GPU {index}', f'{gpu.name}, {gpu.total_memory / 1e9:.0f} GB', f'used by runs; {bf16}'


def _tool(find: Callable[[], object], target: str) -> tuple[str, str]:
    try:
        find()
    except BuildError as error:
        return 'none', f'no {target} kernels can be compiled here: {error}'
    return 'found', f'{target} kernels can be compiled here'


def _kernels() -> Iterator[tuple[str, str, str]]:
    """Yield a line for each device type and backend, with the operations that it serves."""
    serving = defaultdict(list)
    for op, backends in kernels.status().items():
        for device, backend in backends.items():
            serving[device, backend].append(op)
    for (device, backend), ops in serving.items():
        found, _, why = backend.partition(': ')
        meaning = f'slower than compiled ones, and rounding differently, as {why}' if found == 'reference' else why or 'compiled'
        yield f'{device} kernels', found, f'{", ".join(ops)}: {meaning}'


def _collectives() -> Iterator[tuple[str, str, str]]:
    gloo, nccl = torch.distributed.is_gloo_available(), torch.distributed.is_nccl_available()
    yield 'gloo', 'yes' if gloo else 'no', 'several processes, and their checkpoints' if gloo else 'only one process'
    yield 'nccl', 'yes' if nccl else 'no', 'several GPUs' if nccl else 'one GPU with this torch; CPU ranks use gloo'
