"""Builds the CUDA sources with a C++ compiler and emulation.h into a library that serves CPU tensors."""

import hashlib
import os
import shlex
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from imago.kernels.build import LINK, SOURCES, STABLE_ABI, find_compiler

EMULATION = Path(__file__).with_name('emulation.h')
STAND_INS = ('cuda_runtime.h', 'cuda_fp16.h', 'cuda_bf16.h')
SANITIZERS = ('-fsanitize=address,undefined', '-fno-sanitize-recover=undefined')
# -fno-strict-aliasing: nvcc lets vectors of an element type be read from where such elements are
# -U_FORTIFY_SOURCE: it forbids jumps between stacks
FLAGS = ('-std=c++17', '-fPIC', '-g1', '-Wall', '-Wno-unknown-pragmas', '-fno-strict-aliasing', '-U_FORTIFY_SOURCE',
         '-fvisibility=hidden')


_locks = defaultdict(threading.Lock)   # a file is made once, also for several threads


def emulated_library(sanitized: bool = False, mutation: tuple[str, str, str] | None = None,
                     units: Sequence[str] = ()) -> Path:
    """Return the library's path; compile it unless this source was compiled before.

    `mutation` (file, old, new) plants a fault in a file of csrc/cuda; `units` are the .cu files that are compiled with it.
    """
    sources = {path.relative_to(SOURCES).as_posix(): path.read_text() for path in sorted(SOURCES.rglob('*.*'))
               if path.suffix in ('.cu', '.cuh', '.h') or path.name == 'ops.cpp'}
    mutated = dict(sources)
    if mutation:
        file, old, new = mutation
        assert sources[file].count(old) == 1, f'{old!r} is {sources[file].count(old)} times in {file}: mend the fault'
        mutated[file] = sources[file].replace(old, new)

    flags = SANITIZERS if sanitized else ()
    names = [name for name in sources if name.endswith(('.cu', '.cpp'))]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda name: _compile(name, mutated if name in units else sources, flags), names))
    # the linker takes the first definition of an inline function, which must be the planted one
    objects.sort(key=lambda path: path.stem.split('-')[0] not in [Path(unit).stem for unit in units])
    torch_libraries = ('-L', str(Path(torch.__file__).parent / 'lib'))
    return _make('library.so', [*find_compiler(), *flags, *map(str, objects), *LINK, *torch_libraries])


def _compile(name: str, sources: Mapping[str, str], flags: Sequence[str]) -> Path:
    """Object file of a .cu file or of ops.cpp."""
    command = [*find_compiler(), *FLAGS, *flags, '-x', 'c++', '-c']
    if name.endswith('.cpp'):  # this glue is not what is tested, and compiles slowly with more flags
        torch_include = Path(torch.__file__).parent / 'include'
        command += ['-O0', STABLE_ABI, '-DIMAGO_CUDA', '-DIMAGO_EMULATED', '-DIMAGO_KEY=CPU', '-I', str(torch_include)]
    else:
        command += ['-O1']
    text = {name: sources[name], **{path: text for path, text in sources.items() if path.endswith(('.h', '.cuh'))}}
    text |= {f'stand-in/{header}': f'#include "{EMULATION}"\n' for header in STAND_INS}
    return _make(f'{Path(name).stem}.o', command, name, text)


def _make(output: str, command: Sequence[str], source: str = '', text: Mapping[str, str] | None = None) -> Path:
    """Run the command in a folder with these texts, and return what it makes. The temporary folder keeps that for later calls."""
    text = text or {}
    ingredients = (command, source, text, torch.__version__, EMULATION.read_text())
    key = hashlib.sha256(repr(ingredients).encode()).hexdigest()[:20]
    cache = Path(tempfile.gettempdir()) / f'imago-emulated-{os.getuid()}'
    cache.mkdir(mode=0o700, exist_ok=True)
    stem, suffix = output.split('.')
    result = cache / f'{stem}-{key}.{suffix}'
    with _locks[result]:
        if not result.exists():
            _run(result, output, command, source, text)
    return result


def _run(result: Path, output: str, command: Sequence[str], source: str, text: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        for path, content in text.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(content)
        inputs = ['-I', folder, '-I', f'{folder}/stand-in', f'{folder}/{source}'] if source else []
        run = subprocess.run([*command, *inputs, '-o', f'{folder}/{output}'], capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(f'{shlex.join(run.args)} failed:\n{run.stderr[-4000:]}')
        os.replace(f'{folder}/{output}', result)


if __name__ == '__main__':
    print(emulated_library())
