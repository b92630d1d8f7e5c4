"""This compiles csrc/ into a shared library per device type: ahead of time for setup.py, or at first use for library.py."""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / 'csrc'
ARCHITECTURES = ('80', '86', '89', '90', '100', '120')
# the last three let loops with comparisons and sums become vector code; none changes a result
VECTORISE = ('-fopenmp-simd', '-ffp-contract=fast', '-fno-math-errno', '-fno-trapping-math')
SETS = {'base': [], 'v3': ['-march=x86-64-v3'], 'v4': ['-march=x86-64-v4']}   # of instructions, on x86; elsewhere base alone
V3 = {'avx', 'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'abm', 'movbe', 'xsave'}    # as Linux names what the sets need
NEEDED = {'v4': V3 | {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'}, 'v3': V3}
CPUINFO = Path('/proc/cpuinfo')
STABLE_ABI = '-DTORCH_TARGET_VERSION=0x020b000000000000'   # torch 2.11: the library runs in all later versions
# with `-ltorch_cpu` the library would miss the symbols of a CUDA torch
LINK = ('-shared', '-Xlinker', '--no-as-needed', '-ltorch')
ERROR_LINE = re.compile(r'error\b.*:|error \w+:|\bfatal\b|undefined reference|cannot find|not found|No space left')
SEAL_BYTES = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """The message says in one line what is missing, or what the compiler's first error is and where its log lies."""


@dataclass(frozen=True)
class Plan:
    """A plan has the commands that make the object files and then `library.so`, if they run in an empty folder."""

    objects: dict[str, list[str]]
    link: list[str]
    key: str   # it changes with all that may change the library, not with where the folders lie; it names instruction sets


def source_digest(sources: Path = SOURCES) -> str:
    """Return a digest of all files below `sources` and of this one, which has the flags. Names of prebuilt libraries have it."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(path for path in sources.rglob('*') if path.is_file()):
        digest.update(f'\0{path.relative_to(sources)}\0'.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def all_sets() -> tuple[str, ...]:
    """Return the instruction sets that a CPU like this one may have; a library for all of them chooses when it is used."""
    return tuple(SETS) if platform.machine() in ('x86_64', 'AMD64') else ('base',)


def own_sets() -> tuple[str, ...]:
    """Return the one instruction set that is best on this CPU, or all where the system does not tell."""
    if len(all_sets()) == 1:
        return all_sets()
    try:
        flags = re.search(r'^flags\s*:(.*)$', CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        flags = None
    if flags is None:
        return all_sets()
    return next((name for name, needed in NEEDED.items() if needed <= set(flags[1].split())), 'base'),


def plan(device: str, architectures: Sequence[str] = ARCHITECTURES, sources: Path = SOURCES,
         sets: Sequence[str] | None = None) -> Plan:
    """Return how this machine compiles the kernels for 'cpu' or 'cuda'. Raises BuildError if it cannot.

    architectures: of GPUs. sets: instruction sets of CPUs, by default `own_sets()`.
    """
    compiler = find_compiler()
    # torch.utils.cpp_extension is not asked: its import queries the GPU, and finds no nvcc beside a CPU torch
    torch_folder = Path(torch.__file__).parent
    torch_include = torch_folder / 'include'
    for needed in (torch_include / 'torch/csrc/stable/library.h', sources / 'ops.cpp'):
        if not needed.is_file():
            raise BuildError(f'{needed} is missing: reinstall {"torch" if needed.suffix == ".h" else "imago-gan"}')
    cxx = [*compiler, '-std=c++17', '-O3', '-fPIC', '-fvisibility=hidden', STABLE_ABI, '-I', str(torch_include),
           '-I', str(sources)]

    if device == 'cpu':
        sets = own_sets() if sets is None else sets
        ops = ['-DIMAGO_KEY=CPU', *(f'-DIMAGO_HAS_{name.upper()}' for name in sets)]
        objects = {f'{path.stem}_{name}.o': [*cxx, *VECTORISE, *SETS[name], f'-DIMAGO_ISA={name}', '-c', str(path),
                                             '-o', f'{path.stem}_{name}.o']
                   for name in sets for path in sorted(sources.glob('cpu/*.cpp'))}
        linker = compiler
    else:
        ops = ['-DIMAGO_KEY=CUDA', '-DIMAGO_CUDA', '-DUSE_CUDA']
        linker = [find_nvcc(), *(['-ccbin', *compiler] if len(compiler) == 1 else []), '-cudart', 'static']
        nvcc = [*linker, '-std=c++17', '-O3', '-Xcompiler', '-fPIC,-fvisibility=hidden', '-I', str(sources),
                *_targets(linker[0], architectures)]
        objects = {f'{path.stem}.o': [*nvcc, '-c', str(path), '-o', f'{path.stem}.o']
                   for path in sorted(sources.glob('cuda/*.cu'))}
    objects['ops.o'] = [*cxx, *ops, '-c', str(sources / 'ops.cpp'), '-o', 'ops.o']
    link = [*linker, *objects, *LINK, '-L', str(torch_folder / 'lib'), '-o', 'library.so']

    ingredients = (source_digest(sources), objects, link, _version(compiler), _version(linker[:1]), torch.__version__,
                   platform.machine(), platform.libc_ver())
    # two clones of one commit share a build: the key has not their folders' names, but what they hold
    told = repr(ingredients).replace(str(sources), 'SOURCES').replace(str(torch_folder), 'TORCH')
    key = '-'.join((*(sets if device == 'cpu' else ()), hashlib.sha256(told.encode()).hexdigest()[:16]))
    return Plan(objects, link, key)


def compile_library(device: str, target: Path, architectures: Sequence[str] = ARCHITECTURES,
                    sources: Path = SOURCES) -> None:
    """Compile the kernels for `device`, 'cpu' or 'cuda', into the file `target`, which appears at once and whole.

    architectures: compute capabilities, '90' for 9.0; code for later GPUs is made as well (PTX). For 'cpu' the library serves
    every CPU of this kind, whatever instruction set it has.
    Raises BuildError if something is missing or does not compile; the log then lies beside `target`.
    """
    build(plan(device, architectures, sources, all_sets()), target)


def build(plan: Plan, target: Path) -> None:
    """Run a plan, see `compile_library`."""
    ninja = shutil.which('ninja', path=os.pathsep.join((sysconfig.get_path('scripts'), os.environ.get('PATH', ''))))
    if ninja is None:
        raise BuildError('ninja is missing: pip install ninja')
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=scratch_prefix(target), dir=target.parent) as name:
        folder = Path(name)
        # no file is declared an input: the folder is new, so everything is made
        lines = ['rule run', '  command = $line']
        for output, inputs, command in (*((output, [], command) for output, command in plan.objects.items()),
                                        ('library.so', plan.objects, plan.link)):
            lines += [f'build {output}: run {" ".join(inputs)}', f'  line = {shlex.join(command).replace("$", "$$")}']
        (folder / 'build.ninja').write_text('\n'.join(lines) + '\n')
        log = folder / 'log'
        with log.open('w') as told:
            run = subprocess.run([ninja, '-C', name], stdin=subprocess.DEVNULL, stdout=told, stderr=told,
                                 env=os.environ | {'LC_ALL': 'C'})   # _first_error reads English
        if run.returncode != 0:
            kept = target.with_suffix('.log')
            os.replace(log, kept)
            raise BuildError(f'{_first_error(kept.read_text(errors="replace"))} (all of it: {kept})')
        built = folder / 'library.so'
        content = built.read_bytes()
        built.write_bytes(content + _seal(content))   # loaders ignore what follows the last section
        os.replace(built, target)


def is_whole(library: Path) -> bool:
    """Return whether this file is a library as it was built. Loading a truncated one would kill the process."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return _seal(content[:-SEAL_BYTES]) == content[-SEAL_BYTES:]


def scratch_prefix(target: Path) -> str:
    """Return how the names of the folders begin in which `target` is built, beside it."""
    return f'.build-{target.stem}-'


def find_compiler() -> list[str]:
    """Return $CXX, or the first C++ compiler on the PATH, as a command. Raises BuildError if there is none."""
    for command in filter(None, (os.environ.get('CXX'), 'c++', 'g++', 'clang++')):
        program, *flags = shlex.split(command)
        if found := shutil.which(program):
            return [found, *flags]
        if command == os.environ.get('CXX'):
            raise BuildError(f'the C++ compiler {program!r}, which CXX names, is missing')
    raise BuildError('a C++ compiler is missing (c++, g++ or clang++ on the PATH, or CXX): install g++')


def find_nvcc() -> str:
    """Return the first nvcc in $CUDA_HOME, $CUDA_PATH, the PATH, /usr/local/cuda. Raises BuildError if there is none."""
    homes = [home for home in (os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH')) if home]
    path = os.pathsep.join((*(f'{home}/bin' for home in homes), os.environ.get('PATH', ''), '/usr/local/cuda/bin'))
    if found := shutil.which('nvcc', path=path):
        return found
    raise BuildError('nvcc is missing (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda): install the CUDA toolkit')


def _targets(nvcc: str, architectures: Sequence[str]) -> list[str]:
    """Return flags for machine code of those architectures that this nvcc knows, and for PTX of the newest for GPUs to come."""
    known = re.findall(r'compute_(\d+)', _output([nvcc, '--list-gpu-arch']))
    if not known:
        raise BuildError(f'{nvcc} --list-gpu-arch names no architecture: install another CUDA toolkit')
    chosen = [each for each in architectures if each in known]
    newest = max(chosen or known, key=int)
    return [*(f'-gencode=arch=compute_{each},code=sm_{each}' for each in chosen),
            f'-gencode=arch=compute_{newest},code=compute_{newest}']


def _version(compiler: list[str]) -> str:
    return _output([*compiler, '--version'])


def _output(command: list[str]) -> str:
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True)
    except OSError as error:
        raise BuildError(f'{command[0]} does not run: {error}') from error
    if run.returncode != 0:
        raise BuildError(f'{shlex.join(command)} fails: {_first_error(run.stdout)}')
    return run.stdout


def _first_error(log: str) -> str:
    # what ninja itself prints, commands among it, is left out
    said = re.sub(r'^FAILED:.*\n.*|^ninja:.*|^\[\d+/\d+\].*', '', log, flags=re.MULTILINE)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next(filter(ERROR_LINE.search, lines), lines[-1] if lines else 'no output')[:300]


def _seal(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
