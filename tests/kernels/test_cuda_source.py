"""The CUDA sources without a GPU: the suites on their emulation, planted faults that must be caught, spills in nvcc."""

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from emulated import emulated_library
from suites import SUITES, run_suites, sanitizers

from imago.kernels.build import ARCHITECTURES, SOURCES, BuildError, find_nvcc, plan


@dataclass(frozen=True)
class Fault:
    """`old` in csrc/cuda/`file` becomes `new`; compiled with it, `unit`.cu must fail test_`suite`.py -k `tests`."""

    file: str
    old: str
    new: str
    unit: str
    suite: str
    tests: str
    sanitized: bool = False


FAULTS = {
    'barrier dropped before the warps of a block are merged': Fault(
        'walk.cuh', '__syncthreads();\n    for', 'for', 'epilogue_grad', 'layer_ends', 'modulate'),
    'barrier dropped before the terms of a sum are added': Fault(
        'sums.cuh', 'sum;\n  __syncthreads();', 'sum;', 'sums', 'layer_ends', 'modulate'),
    'barrier dropped after the tile is filled': Fault(
        'fir_nchw.cu', '  __syncthreads();\n', '', 'fir_nchw', 'filter_paths', 'upfirdn2d'),
    'bound of the picture off by one in the tile': Fault(
        'fir_nchw.cu', 'ix < in_w &&', 'ix <= in_w &&', 'fir_nchw', 'filter_paths', 'upfirdn2d'),
    'bound of the picture missing in the general filter': Fault(
        'fir_any.cu', '&& iy < fir.in_h', '', 'fir_any', 'filter_paths', 'upfirdn2d'),
    'parity of the padding ignored when up-sampling': Fault(
        'fir_nchw.cu', 'fir.left & 1', '0', 'fir_nchw', 'filter_paths', 'upfirdn2d'),
    'origin of up-sampled steps off by one': Fault(
        'fir_nhwc.cu', '1 - before - up * origin', '-before - up * origin', 'fir_nhwc', 'filter_paths', 'upfirdn2d'),
    'window of the next output row wrong when down-sampling': Fault(
        'fir_nhwc.cu', 'd - ahead * down', 'd - ahead', 'fir_nhwc', 'filter_paths', 'upfirdn2d'),
    'taps past the last are not 0': Fault(
        'fir.cuh', 'i < taps_h && j < taps_w', 'true', 'fir_nhwc', 'filter_paths', 'upfirdn2d'),
    'rows of the chunk above overwritten': Fault(
        'fir_nhwc.cu', 'step >= first && ', '', 'fir_nhwc', 'filter_paths', 'upfirdn2d'),
    'sign of the mask turned': Fault(
        'epilogue_grad.cu', 'y > 0 ? slope[1] : slope[0]', 'y > 0 ? slope[0] : slope[1]', 'epilogue_grad', 'layer_ends',
        'test_epilogue'),
    'clamped elements pass their gradient': Fault(
        'bias_act.cu', '!(std::abs(y) < curve.clamp)', 'false', 'bias_act', 'bias_act', 'golden'),
    'last elements of a row that is no multiple of a vector left out': Fault(
        'walk.cuh', 'room < 0 ? 0 : room < V ? room : V', 'room < V ? 0 : V', 'epilogue', 'layer_ends', 'modulate'),
    'a warp left out of the sums': Fault(
        'walk.cuh', 'warp < walk.warps; ++warp', 'warp < walk.warps - 1; ++warp', 'epilogue_grad', 'layer_ends',
        'modulate'),
    'all samples take the noise of the first': Fault(
        'finish.cuh', 'one_noise ? 0 : n * pixels', '0', 'epilogue', 'layer_ends', 'test_epilogue'),
    'sums over channels overwrite one another': Fault(
        'walk.cuh', '(at.tile * walk.samples + at.n) * walk.slow', 'at.n * walk.slow', 'epilogue_grad', 'layer_ends',
        'test_epilogue and plain'),
    'variance from large squares': Fault(
        'adain.cu', 'end.u(A(x[at]) + end.pixel(n, 0) + b)', 'A(0)', 'adain', 'layer_ends', 'far_from_0'),
    'empty maps launched': Fault(
        'device.cuh', 'if (blocks == 0) return cudaSuccess;', '', 'epilogue', 'layer_ends', 'modulate'),
    'vectors read at odd offsets': Fault(
        'walk.cuh', 'vectors && aligned<Pack<T>>(in)', 'vectors', 'epilogue', 'layer_ends', 'offsets', True),
    'scratch too small': Fault(
        'walk.cuh', 'sizeof(A)) * (sums * sums_size()', 'sizeof(A)) * (sums_size()', 'epilogue_grad', 'layer_ends',
        'test_epilogue and plain', True),
}


def has_nvcc() -> bool:
    try:
        find_nvcc()
    except BuildError:
        return False
    return True


def run_in_order() -> subprocess.CompletedProcess:
    return run_suites(SUITES, library=emulated_library())


def run_shuffled() -> subprocess.CompletedProcess:
    return run_suites(SUITES, 'not second_order', library=emulated_library(), IMAGO_EMULATION_SEED='1')


def run_sanitized() -> subprocess.CompletedProcess:
    return run_suites(SUITES[:-1], 'not second_order and not dtype0', library=emulated_library(sanitized=True), **sanitizers())


def run_fault(fault: Fault) -> subprocess.CompletedProcess:
    library = emulated_library(fault.sanitized, (f'cuda/{fault.file}', fault.old, fault.new), [f'cuda/{fault.unit}.cu'])
    environment = sanitizers() if fault.sanitized else {'IMAGO_EMULATION_SEED': '1'}
    return run_suites((fault.suite,), fault.tests, library=library, **environment)


def run_nvcc(source: Path) -> subprocess.CompletedProcess:
    architectures = ARCHITECTURES if os.environ.get('IMAGO_TEST_ALL_ARCHS') else ('90',)
    command = plan('cuda', architectures).objects[f'{source.stem}.o']
    return subprocess.run([*command[:-1], os.devnull, '-Xptxas', '-v'], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


@pytest.fixture(scope='module')
def jobs(request) -> Iterator[dict[str, Future]]:
    """Map each chosen test to what its `job` returns. All jobs start with the first test and run two at a time."""
    chosen = [item for item in request.session.items if item.path == Path(__file__)]
    with ThreadPoolExecutor(2) as pool:
        futures = {item.nodeid: pool.submit(item.callspec.params['job']) for item in chosen}
        yield futures
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def run(jobs, job, request) -> subprocess.CompletedProcess:
    return jobs[request.node.nodeid].result()


@pytest.mark.parametrize('job', [run_sanitized, run_in_order, run_shuffled])
def test_suites_pass_on_emulated_cuda(run):
    assert run.returncode == 0 and ' passed' in run.stdout, run.stdout[-3000:]
    assert 'Sanitizer' not in run.stdout and 'runtime error' not in run.stdout, run.stdout[-3000:]


@pytest.mark.parametrize('job', [pytest.param(partial(run_fault, fault), id=name) for name, fault in FAULTS.items()])
def test_planted_fault_is_caught(job, run):
    fault, = job.args
    by = 'AddressSanitizer|runtime error' if fault.sanitized else f'FAILED tests/kernels/test_{fault.suite}.py::'
    assert re.search(by, run.stdout) and 'BuildError' not in run.stdout, f'not caught:\n{run.stdout[-3000:]}'


@pytest.mark.skipif(not has_nvcc(), reason='nvcc is not there')
@pytest.mark.parametrize('job', [pytest.param(partial(run_nvcc, source), id=source.name)
                                 for source in sorted(SOURCES.glob('cuda/*.cu'))])
def test_nvcc_compiles_without_spills(run):
    assert run.returncode == 0, run.stdout[-3000:]
    assert not re.findall(r'.*\b[1-9]\d* bytes (?:stack frame|spill stores|spill loads).*', run.stdout)
