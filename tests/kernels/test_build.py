"""How kernels get compiled and loaded, and each way in which that fails for users, in processes of their own."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from imago.kernels import build, library

ROOT = Path(__file__).parents[2]
COMPILER = build.find_compiler()[0]
try:
    NVCC = build.find_nvcc()
except build.BuildError:
    NVCC = None

# doubles what modulate should return, which shows who has computed it
OPS = '''
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
torch::stable::Tensor modulate(const torch::stable::Tensor& x, const torch::stable::Tensor&) {
  auto y = torch::stable::empty_like(x);
  return torch::stable::fill_(y, 2.0);
}
STABLE_TORCH_LIBRARY_IMPL(imago, CPU, library) { library.impl("modulate", TORCH_BOX(&modulate)); }
'''
# prints which way modulate went
USE = '''
import sys
from pathlib import Path
import torch, kernels
from imago.kernels import build, library
library.SOURCES, library.PREBUILT = Path(sys.argv[1]), Path(sys.argv[1]) / 'none'
library.WAIT_SECONDS, build.CPUINFO = float(sys.argv[2]), Path(sys.argv[3])
y = kernels.modulate(torch.ones(1, 1, 2, 2), torch.ones(1, 1))
print({1.0: 'reference', 2.0: 'compiled'}[y.max().item()])
'''


@pytest.fixture(scope='session')
def stand_in(tmp_path_factory) -> Path:
    """Sources that compile in two seconds."""
    folder = tmp_path_factory.mktemp('csrc')
    (folder / 'ops.cpp').write_text(OPS)
    return folder


@pytest.fixture(scope='session')
def warm(stand_in, tmp_path_factory) -> Path:
    """A cache that has the library of `stand_in`."""
    cache = tmp_path_factory.mktemp('cache')
    assert use(stand_in, cache)[0] == 'compiled'
    return cache


def start(sources: Path, cache: Path | None, wait: float = 60, cpuinfo: Path = build.CPUINFO,
          **environment: str) -> subprocess.Popen:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith('IMAGO_')}
    named = {} if cache is None else {'IMAGO_KERNELS_CACHE': str(cache)}
    return subprocess.Popen([sys.executable, '-c', USE, sources, str(wait), cpuinfo], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=inherited | named | environment)


def use(*arguments, **environment: str) -> tuple[str, str]:
    """Use the kernels in a new process. Returns (the way taken: 'compiled', 'reference' or '', stderr)."""
    out, err = start(*arguments, **environment).communicate()
    return out.strip(), err


def only_line(err: str) -> str:
    """Return the only line that a failure prints, apart from the announcement of a build."""
    line, = (line for line in err.splitlines() if 'compiling the CPU kernels' not in line and 'compiled in' not in line)
    return line


def counting(folder: Path, before: str = '') -> tuple[str, Path]:
    """Make a compiler that runs `before` and writes a line for each compilation of ops.cpp, and the file of these lines."""
    count, wrapper = folder / 'count', folder / 'c++'
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *ops.cpp*) echo >> {count}; {before} ;; esac\nexec {COMPILER} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper), count


def test_second_process_takes_what_the_first_built(stand_in, tmp_path):
    compiler, count = counting(tmp_path)
    for _ in range(2):
        assert use(stand_in, tmp_path / 'cache', CXX=compiler)[0] == 'compiled'
    assert count.read_text() == '\n'


def test_several_ranks_build_once(stand_in, tmp_path):
    compiler, count = counting(tmp_path)
    ranks = [start(stand_in, tmp_path / 'cache', CXX=compiler) for _ in range(4)]
    told = [rank.communicate() for rank in ranks]
    assert [out.strip() for out, _ in told] == ['compiled'] * 4
    assert count.read_text() == '\n'
    first, second = (line for _, err in told for line in err.splitlines())
    assert re.fullmatch(rf"imago: compiling the CPU kernels, once, into {tmp_path / 'cache'}: about [0-9]+ s", first)
    assert re.fullmatch('imago: compiled in [0-9]+ s', second)


def test_killed_build_leaves_no_trap(stand_in, tmp_path):
    started = tmp_path / 'started'
    os.mkfifo(started)
    # only the first compilation reports, and never ends
    first = f'[ -p {started} ] && echo $$ > {started} && exec sleep 1000'
    compiler, _ = counting(tmp_path, first)
    rank = start(stand_in, tmp_path / 'cache', CXX=compiler)
    sleeper = int(started.read_text())
    rank.send_signal(signal.SIGKILL)
    rank.communicate()
    started.unlink()
    assert use(stand_in, tmp_path / 'cache', 0, CXX=compiler)[0] == 'compiled'
    os.kill(sleeper, signal.SIGKILL)
    assert not list((tmp_path / 'cache').glob('.build-*')), 'what the killed build left is still there'


def test_a_process_that_builds_for_too_long_is_not_waited_for(stand_in, tmp_path):
    started, release = tmp_path / 'started', tmp_path / 'release'
    os.mkfifo(started)
    os.mkfifo(release)
    compiler, _ = counting(tmp_path, f'[ -p {started} ] && echo > {started} && cat {release}')
    slow = start(stand_in, tmp_path / 'cache', CXX=compiler)
    started.read_text()
    way, err = use(stand_in, tmp_path / 'cache', 0, CXX=compiler)
    assert way == 'reference' and 'another process has been building for 0 s' in only_line(err)
    release.write_text('')
    assert slow.communicate()[0].strip() == 'compiled'


@pytest.mark.parametrize('damage', [lambda content: content[:len(content) // 2], lambda content: b'',
                                    lambda content: content[:5000] + b'\xff' + content[5001:]])
def test_damaged_library_is_built_again(stand_in, warm, tmp_path, damage):
    built, = warm.glob('*.so')
    damaged = tmp_path / built.name
    damaged.write_bytes(damage(built.read_bytes()))
    assert use(stand_in, tmp_path)[0] == 'compiled'
    assert build.is_whole(damaged)


def test_error_of_the_compiler_is_quoted(stand_in, tmp_path):
    shutil.copytree(stand_in, tmp_path / 'csrc')
    (tmp_path / 'csrc' / 'ops.cpp').write_text(OPS + 'this does not compile\n')
    way, err = use(tmp_path / 'csrc', tmp_path)
    line = only_line(err)
    assert way == 'reference' and 'ops.cpp:9:1: error: ' in line
    log = Path(line.split('(all of it: ')[1].rstrip(')'))
    assert 'this does not compile' in log.read_text()


def test_no_stale_library_is_taken(stand_in, tmp_path, monkeypatch):
    """The key follows all that goes into a library, the name of a prebuilt one its sources."""
    sources = tmp_path / 'csrc'
    shutil.copytree(stand_in, sources)
    keys = [build.plan('cpu', sources=sources).key]
    names = [library.library_name('cpu', sources)]
    for path, text in (sources / 'ops.cpp', OPS.replace('2.0', '3.0')), (sources / 'new.h', ''):
        path.write_text(text)
        keys.append(build.plan('cpu', sources=sources).key)
        names.append(library.library_name('cpu', sources))
    assert len(set(names)) == len(names)

    monkeypatch.setattr(torch, '__version__', '2.99')
    keys.append(build.plan('cpu', sources=sources).key)
    (sources / 'cpu').mkdir()
    (sources / 'cpu' / 'part.cpp').write_text('')
    keys.append(build.plan('cpu', sources=sources).key)
    monkeypatch.setattr(build, 'VECTORISE', ('-O1',))
    keys.append(build.plan('cpu', sources=sources).key)
    newer = tmp_path / 'c++'
    newer.write_text('#!/bin/sh\necho 99.0\n')
    newer.chmod(0o755)
    monkeypatch.setenv('CXX', str(newer))
    keys.append(build.plan('cpu', sources=sources).key)
    newer.write_text('#!/bin/sh\necho 99.1\n')
    keys.append(build.plan('cpu', sources=sources).key)
    assert len(set(keys)) == len(keys)


def test_two_clones_share_a_build(stand_in, tmp_path, monkeypatch):
    sources = tmp_path / 'elsewhere' / 'csrc'
    shutil.copytree(stand_in, sources)
    mine = build.plan('cpu', sources=stand_in).key
    (tmp_path / 'venv').mkdir()
    (tmp_path / 'venv' / 'torch').symlink_to(Path(torch.__file__).parent)
    monkeypatch.setattr(torch, '__file__', str(tmp_path / 'venv' / 'torch' / '__init__.py'))
    assert build.plan('cpu', sources=sources).key == mine
    (sources / 'ops.cpp').write_text(OPS.replace('2.0', '3.0'))
    assert build.plan('cpu', sources=sources).key != mine


FLAGS = {'v4': [*build.NEEDED['v4'], 'sse2'], 'v3': [*build.NEEDED['v3'], 'avx512f'], 'base': ['sse2', 'avx2']}


def cpu_of(folder: Path, name: str) -> Path:
    """Write what Linux would say of a CPU that has this instruction set."""
    path = folder / f'cpuinfo-{name}'
    path.write_text(f'processor\t: 0\nflags\t\t: {" ".join(FLAGS[name])}\nbugs\t\t: avx512vl\n\nprocessor\t: 1\n')
    return path


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='one instruction set')
def test_only_the_own_instruction_set_is_compiled_at_first_use(tmp_path, monkeypatch):
    for name in FLAGS:
        monkeypatch.setattr(build, 'CPUINFO', cpu_of(tmp_path, name))
        planned = build.plan('cpu')
        assert planned.key.startswith(f'{name}-') and f'-DIMAGO_HAS_{name.upper()}' in planned.objects['ops.o']
        assert {output.removesuffix('.o').rpartition('_')[2] for output in planned.objects} == {name, 'ops'}
    monkeypatch.setattr(build, 'CPUINFO', tmp_path / 'not Linux')
    assert build.own_sets() == build.all_sets() == ('base', 'v3', 'v4')
    assert len(build.plan('cpu').objects) == 3 * (len(planned.objects) - 1) + 1
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    assert build.own_sets() == build.all_sets() == ('base',)


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='one instruction set')
def test_machines_of_several_kinds_share_a_cache(stand_in, tmp_path):
    cache = tmp_path / 'cache'
    for name in FLAGS:
        for _ in range(2):
            assert use(stand_in, cache, 60, cpu_of(tmp_path, name))[0] == 'compiled'
    assert sorted(path.name.split('-')[1] for path in cache.glob('*.so')) == ['base', 'v3', 'v4']


def test_a_library_that_this_cpu_cannot_run_is_not_used(stand_in, tmp_path):
    shutil.copytree(stand_in, tmp_path / 'csrc')
    (tmp_path / 'csrc' / 'ops.cpp').write_text(OPS.replace('  auto y', '  STD_TORCH_CHECK(false, "for another CPU");\n  auto y'))
    way, err = use(tmp_path / 'csrc', tmp_path / 'cache')
    assert way == 'reference' and 'no compiled cpu kernels, plain PyTorch serves' in err and 'for another CPU' in err


def test_no_compiler(stand_in, tmp_path):
    way, err = use(stand_in, tmp_path, PATH=str(tmp_path))
    assert way == 'reference' and 'a C++ compiler is missing' in only_line(err) and 'install g++' in err
    way, err = use(stand_in, tmp_path, CXX='no-such-compiler')
    assert way == 'reference' and "'no-such-compiler', which CXX names, is missing" in only_line(err)


def test_no_ninja(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('CXX', COMPILER)
    monkeypatch.setattr(build.sysconfig, 'get_path', lambda name: str(tmp_path))
    with pytest.raises(build.BuildError, match='ninja is missing: pip install ninja'):
        build.compile_library('cpu', tmp_path / 'x.so', sources=stand_in)


def test_no_nvcc(tmp_path, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, 'which', lambda program, path=None: None if program == 'nvcc' else which(program))
    with pytest.raises(build.BuildError, match='nvcc is missing .*install the CUDA toolkit'):
        build.compile_library('cuda', tmp_path / 'x.so')


def test_nvcc_is_taken_from_cuda_home_first(tmp_path, monkeypatch):
    nvcc = tmp_path / 'bin' / 'nvcc'
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    assert build.find_nvcc() == str(nvcc)


def test_folders_that_cannot_be_written_to(stand_in, tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    nowhere = {'XDG_CACHE_HOME': f'{file}/cache', 'HOME': '/proc/nowhere'}
    assert use(stand_in, file / 'named', **nowhere, TMPDIR=str(tmp_path))[0] == 'compiled'
    folder, = tmp_path.glob('imago-kernels-*')
    assert folder.stat().st_mode & 0o777 == 0o700

    folder.chmod(0o777)   # others may have put a library there
    way, err = use(stand_in, file / 'named', **nowhere, TMPDIR=str(tmp_path))
    assert way == 'reference' and 'is not ours alone' in only_line(err) and 'set IMAGO_KERNELS_CACHE' in err


def test_readable_folder_suffices_once_it_is_built(stand_in, warm, tmp_path):
    built, = warm.glob('*.so')
    cache = tmp_path / 'cache'
    cache.mkdir()
    (cache / built.name).symlink_to(built)
    # a lock that cannot be opened, as in a folder that is read-only: root may write to those
    (cache / built.with_suffix('.lock').name).mkdir()
    assert use(stand_in, cache)[0] == 'compiled'


def test_strict_mode_raises(stand_in, tmp_path):
    way, err = use(stand_in, tmp_path, PATH=str(tmp_path), IMAGO_KERNELS='strict')
    assert way == ''
    assert 'BuildError: no compiled cpu kernels, and IMAGO_KERNELS=strict: a C++ compiler is missing' in err


def test_reference_mode_loads_nothing_and_other_modes_are_refused(stand_in, warm):
    assert use(stand_in, warm, IMAGO_KERNELS='reference') == ('reference', '')
    way, err = use(stand_in, warm, IMAGO_KERNELS='fast')
    assert way == '' and "ValueError: IMAGO_KERNELS is 'fast': set one of auto, reference, strict" in err


def test_library_given_by_its_path(stand_in, warm, tmp_path):
    built, = warm.glob('*.so')
    assert use(stand_in, tmp_path, IMAGO_KERNELS_LIBRARY=str(built), PATH='') == ('compiled', '')


def run(code: str, **environment: str) -> str:
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, text=True, check=True,
                          stdout=subprocess.PIPE, env=os.environ | environment).stdout


def test_import_and_use_on_cpu_query_no_gpu(stand_in, warm):
    code = f'''
        from pathlib import Path
        import torch
        def forbidden(*_): raise AssertionError('a GPU is queried')
        for name in ('is_available', 'device_count', 'get_device_capability', '_lazy_init'):
            setattr(torch.cuda, name, forbidden)
        from imago import kernels
        from imago.kernels import library
        library.SOURCES, library.PREBUILT = Path({str(stand_in)!r}), Path('none')
        print(len(torch.ops.loaded_libraries))
        kernels.modulate(torch.ones(1, 1, 2, 2), torch.ones(1, 1))
        print(len(torch.ops.loaded_libraries))
    '''
    assert run(code, IMAGO_KERNELS_CACHE=str(warm)).split() == ['0', '1']


def test_first_use_may_be_inside_a_compiled_function(stand_in, warm):
    code = f'''
        from pathlib import Path
        import torch
        from imago.kernels import library
        library.SOURCES, library.PREBUILT = Path({str(stand_in)!r}), Path('none')

        @torch.compile(fullgraph=True, backend='eager')
        def way(x): return x + 1 if library.serves(x.device.type) else x - 1

        print(way(torch.zeros(())).item())
        with library.reference_path():
            print(way(torch.zeros(())).item())
        print(way(torch.zeros(())).item())
    '''
    assert run(code, IMAGO_KERNELS_CACHE=str(warm)).split() == ['1.0', '-1.0', '1.0']


def test_status_says_what_serves_and_why():
    code = 'import json, kernels; print(json.dumps(kernels.status()))'
    for backend in json.loads(run(code)).values():
        assert backend['cpu'].startswith('C++ (')
    for backend in json.loads(run(code, IMAGO_KERNELS='reference')).values():
        assert backend['cpu'] == 'reference: IMAGO_KERNELS=reference'


def test_reference_path_ends_with_its_block():
    with pytest.raises(ZeroDivisionError), library.reference_path():
        assert not library.serves('cpu')
        1 / 0
    assert library.serves('cpu') and not library.serves('meta')


def test_library_of_the_real_sources_links_what_every_torch_has():
    assert library.serves('cpu')
    assert links(library._backend('cpu').library) >= {'libtorch.so', 'libc.so.6'}


def links(path: Path) -> set[str]:
    """Return the libraries that it needs to load; libtorch_cpu or CUDA's own libraries would tie it to one torch."""
    printed = subprocess.run(['readelf', '-d', path], capture_output=True, text=True, check=True).stdout
    names = {line.split('[')[1].rstrip(']') for line in printed.splitlines() if 'NEEDED' in line}
    assert not [name for name in names if name.startswith(('libtorch_', 'libcu', 'libc10'))], names
    return names


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='one instruction set')
def test_instruction_sets_share_no_functions(tmp_path):
    objects = build.plan('cpu', sets=['v4']).objects
    objects.pop('ops.o')
    for command in objects.values():
        subprocess.run(['-O1' if word == '-O3' else word for word in command], cwd=tmp_path, check=True)
    symbols = subprocess.run(['nm', '-C', *objects], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert ' T imago_cpu_v4' in symbols and ' T imago::v4::adain(' in symbols
    public = [line for line in symbols.splitlines() if ' T ' in line and not re.search(' (imago_cpu_v4|imago::v4::.*)$', line)]
    shared = [line for line in symbols.splitlines() if ' W ' in line or ' u ' in line]
    assert not public and not shared, 'the linker would take one of several copies, for all CPUs'


@pytest.mark.skipif(NVCC is None, reason='needs nvcc')
def test_cuda_library_needs_no_cuda_runtime_and_loads_without_a_gpu(tmp_path):
    """Thus it serves torch builds of any CUDA major version, and its presence does not harm a torch without CUDA."""
    sources = tmp_path / 'csrc'
    (sources / 'cuda').mkdir(parents=True)
    (sources / 'ops.cpp').write_text('extern "C" int launch();\nstatic int at_load = launch();\n')
    (sources / 'cuda' / 'launch.cu').write_text(
        '__global__ void nothing() {}\nextern "C" int launch() { nothing<<<1, 1>>>(); return cudaGetLastError(); }\n')
    target = tmp_path / 'imago_cuda.so'
    build.compile_library('cuda', target, ('90',), sources)
    assert 'libtorch.so' in links(target)
    run(f'import torch; torch.ops.load_library({str(target)!r})')
