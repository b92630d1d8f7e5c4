"""A library of compiled kernels serves a device type; it is found, or built at first use. Without one PyTorch serves."""

import logging
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout  # torch itself needs it

from imago.kernels import build
from imago.kernels.build import BuildError

MODES = ('auto', 'reference', 'strict')
DEVICES = ('cpu', 'cuda')
LANGUAGES = {'cpu': 'C++', 'cuda': 'CUDA C++'}
OPS = ('upfirdn2d', 'bias_act', 'epilogue', 'modulate', 'adain')
PREBUILT = Path(__file__).parent / 'lib'
SOURCES = build.SOURCES
WAIT_SECONDS = 300.0   # to wait for another process that builds; below the 10 minutes after which collectives give up
SECONDS_A_FILE = 5     # of C++, on one core of middling age

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """`library` serves, or if it is None plain PyTorch does, because of `reason`."""

    library: Path | None
    reason: str = ''


_backends: dict[str, Backend] = {}
_bypassed = False


def serves(device_type: str) -> bool:
    """Return whether compiled kernels take tensors on this type of device. The first call for it may build them.

    Raises RuntimeError (BuildError) if they cannot be had and IMAGO_KERNELS=strict; ValueError if IMAGO_KERNELS is unknown.
    """
    return not _bypassed and _has_library(device_type)


def status() -> dict[str, dict[str, str]]:
    """Return {op: {device type: what serves it, and why if plain PyTorch does}}. It may build kernels, as a first use would."""
    serving = {'cpu': _describe('cpu')}
    serving['cuda'] = _describe('cuda') if torch.cuda.is_available() else 'not needed: torch sees no GPU'
    return {op: dict(serving) for op in OPS}


def backend(device_type: str) -> str:
    """Name what serves on this type of device, and for which processor. Two with the same name give results with the same bits.

    It may build kernels and fails, like `serves`.
    """
    kind = LANGUAGES[device_type] if serves(device_type) else 'plain PyTorch'
    given = ' by IMAGO_KERNELS_LIBRARY' if serves(device_type) and _is_given(_backend(device_type).library) else ''
    return f'{kind}{given} ({_processor(device_type)})'


def why_none(device_type: str) -> str | None:
    """Return why plain PyTorch serves on this type of device; None if compiled kernels do. It builds and fails like `serves`."""
    if serves(device_type):
        return None
    return _backends[device_type].reason if device_type in _backends else f'there are none for {device_type}'


def keep_to_reference(device_type: str, reason: str) -> None:
    """Let plain PyTorch serve on this type of device from now on."""
    _backends[device_type] = Backend(None, reason)


@contextmanager
def reference_path() -> Iterator[None]:
    """Inside, plain PyTorch serves all devices, in all threads. Comparisons need it."""
    global _bypassed
    before, _bypassed = _bypassed, True
    try:
        yield
    finally:
        _bypassed = before


def library_name(device: str, sources: Path = build.SOURCES) -> str:
    """Return the file name of a library built ahead of time. It has the sources' digest, so that a stale one is not taken."""
    return f'imago_{device}-{build.source_digest(sources)}.so'


def _has_library(device_type: str) -> bool:
    if device_type not in DEVICES:
        return False
    backend = _backend(device_type)
    if backend.library is None and _mode() == 'strict':
        raise BuildError(f'no compiled {device_type} kernels, and IMAGO_KERNELS=strict: {backend.reason}')
    return backend.library is not None


# torch.compiler.assume_constant_result sets this, but takes a second to import
setattr(_has_library, '_dynamo_marked_constant', True)  # noqa: B010  # torch.compile reads this mark


def _backend(device: str) -> Backend:
    if device not in _backends:
        _backends[device] = _choose(device)
    return _backends[device]


def _choose(device: str) -> Backend:
    mode = _mode()
    if mode == 'reference':
        return Backend(None, 'IMAGO_KERNELS=reference')
    try:
        library = _find_or_build(device)
        torch.ops.load_library(library)
        # here a driver shows that is older than the toolkit, and a GPU or CPU that the code is not for
        torch.ops.imago.modulate(torch.ones(1, 1, 1, 1, device=device), torch.ones(1, 1, device=device))
    except (RuntimeError, OSError) as error:
        reason = ' '.join(f'{error}: {error.__cause__}'.split() if error.__cause__ else str(error).split())
        if mode == 'auto':
            logger.warning(f'imago: no compiled {device} kernels, plain PyTorch serves (slower, and it rounds differently): '
                           f'{reason}')
        return Backend(None, reason)
    return Backend(library)


def _mode() -> str:
    mode = os.environ.get('IMAGO_KERNELS', 'auto')
    if mode not in MODES:
        raise ValueError(f'IMAGO_KERNELS is {mode!r}: set one of {", ".join(MODES)}')
    return mode


def _find_or_build(device: str) -> Path:
    given = os.environ.get('IMAGO_KERNELS_LIBRARY')
    if given and device == 'cpu':
        return Path(given)
    prebuilt = PREBUILT / library_name(device, SOURCES)
    if build.is_whole(prebuilt):
        return prebuilt

    plan = build.plan(device, _architectures() if device == 'cuda' else (), SOURCES)
    refusals = []
    for folder, private in _cache_folders():
        target = folder / f'imago_{device}-{plan.key}.so'
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if private:
                _check_private(folder)
            if build.is_whole(target):   # comes before the lock: the folder may be read-only
                return target
            lock = FileLock(target.with_suffix('.lock')).acquire(WAIT_SECONDS)
        except Timeout as error:
            raise BuildError(f'another process has been building for {WAIT_SECONDS:g} s, it holds {error.lock_file}') from error
        except OSError as error:
            refusals.append(str(error))
            continue
        with lock:
            _build_locked(device, plan, target)
        return target
    raise BuildError(f'no folder to build in, set IMAGO_KERNELS_CACHE: {"; ".join(refusals)}')


def _build_locked(device: str, plan: build.Plan, target: Path) -> None:
    """Build, unless another process has done so meanwhile. The death of one that holds the lock frees it."""
    if build.is_whole(target):
        return
    for leftover in target.parent.glob(f'{build.scratch_prefix(target)}*'):
        shutil.rmtree(leftover, ignore_errors=True)   # a killed build left it, whose compiler may still be writing
    began = time.monotonic()
    logger.warning(f'imago: compiling the {device.upper()} kernels, once, into {target.parent}: {_duration(device, plan)}')
    build.build(plan, target)
    logger.warning(f'imago: compiled in {time.monotonic() - began:.0f} s')


def _duration(device: str, plan: build.Plan) -> str:
    """Say how long this machine will take to compile, which differs by a factor of three between old and new cores."""
    if device == 'cuda':
        return 'it takes minutes'
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return f'about {SECONDS_A_FILE * math.ceil(len(plan.objects) / cores):.0f} s'


def _cache_folders() -> Iterator[tuple[Path, bool]]:
    """Yield (where libraries are kept, whether others must not be able to write there), the best first."""
    if named := os.environ.get('IMAGO_KERNELS_CACHE'):
        yield Path(named).absolute(), False
    user = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'))
    if user.is_absolute():   # without a home the tilde stays
        yield user / 'imago' / 'kernels', False
    yield Path(tempfile.gettempdir(), f'imago-kernels-{os.getuid()}'), True


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f'{folder} is not ours alone')


def _architectures() -> tuple[str, ...]:
    """Return the architectures of the GPUs that torch sees, or all that are known if it sees none."""
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return tuple(sorted({f'{major}{minor}' for major, minor in capabilities})) or build.ARCHITECTURES


def _describe(device: str) -> str:
    library = _backend(device).library
    if library is None:
        return f'reference: {_backend(device).reason}'
    if _is_given(library):
        return f'IMAGO_KERNELS_LIBRARY={library}'
    return 'CUDA C++' if device == 'cuda' else f'C++ ({_processor(device)})'


def _is_given(library: Path) -> bool:
    return str(library) == os.environ.get('IMAGO_KERNELS_LIBRARY')


def _processor(device: str) -> str:
    """Name the processor by its instruction set: vectors of another length sum in another order."""
    if device == 'cuda':
        return 'compute capability {}.{}'.format(*torch.cuda.get_device_capability())
    return torch.backends.cpu.get_cpu_capability()
