"""The machine code of CUDA kernels for sm_90: what a step reads is under way before any of it is used, and nothing spills."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from imago.kernels.build import BuildError, find_nvcc, plan

INSTRUCTION = re.compile(r'/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);')
LABEL, TARGET = re.compile(r'^(\.L_x_\d+):'), re.compile(r'\.L_x_\d+')
# an instruction that reads its first operand, too
READS_ALL = ('ST', 'RED', 'ATOM', 'BRA', 'BAR')


@dataclass(frozen=True)
class Kernel:
    """A kernel's mangled name, the registers of a thread, and (operation, operands) in their order; a label has no operation."""

    name: str
    registers: int
    code: tuple[tuple[str, str], ...]

    def main_loop(self, load: str) -> tuple[tuple[str, str], ...]:
        """Return the shortest stretch with such a load that a branch jumps back over."""
        at = {label: i for i, (operation, label) in enumerate(self.code) if not operation}
        ends = [(at[target[0]], i) for i, (operation, operands) in enumerate(self.code)
                if operation.startswith('BRA') and (target := TARGET.search(operands)) and at[target[0]] < i]
        loops = sorted((self.code[start:end] for start, end in ends), key=len)
        return next((loop for loop in loops if any(operation.startswith(load) for operation, _ in loop)), ())

    def loads(self, load: str, beside: str) -> tuple[int, int]:
        """Count such loads of a step of the main loop, which has one `beside`, and those that start before a result is read."""
        loop = self.main_loop(beside)
        coming, started = set(), 0
        for operation, operands in loop:
            result, _, others = operands.partition(',')
            if operation and coming & registers(operands if operation.startswith(READS_ALL) else others):
                break
            if operation.startswith(load):
                started += 1
                coming |= {min(registers(result)) + more for more in range(4 if '.128' in operation else 1)}
        return sum(operation.startswith(load) for operation, _ in loop), started


def registers(operands: str) -> set[int]:
    return {int(number) + more for number, wide in re.findall(r'\bR(\d+)\b(?:\.reuse)?(\.64)?', operands)
            for more in range(2 if wide else 1)}


def find_nvdisasm() -> str | None:
    """Return nvdisasm of the PATH or of the package nvidia-cuda-nvdisasm."""
    spec = importlib.util.find_spec('nvidia')
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return shutil.which('nvdisasm') or next(
        (str(path) for folder in folders for path in sorted(Path(folder).glob('*/bin/nvdisasm'))), None)


@cache
def kernels_of(unit: str, folder: Path) -> list[Kernel]:
    """Compile csrc/cuda/`unit`.cu as the build does, and take it apart."""
    cubin = str(folder / f'{unit}.cubin')
    flags = [flag for flag in plan('cuda', ['90']).objects[f'{unit}.o'][:-2] if not flag.startswith('-gencode')]
    flags[flags.index('-c')] = '-cubin'
    told = subprocess.run([*flags, '-arch=sm_90', '-Xptxas', '-v', '-o', cubin], check=True, capture_output=True, text=True)
    used = dict(re.findall(r"entry function '(\w+)'(?:.*\n)*?.*Used (\d+) registers", told.stderr))
    text = subprocess.run([find_nvdisasm(), '-c', cubin], check=True, capture_output=True, text=True).stdout
    kernels = []
    for part in text.split('\t.section\t.text.')[1:]:
        name = part[:part.index(',')]
        code = [('', label[1]) if (label := LABEL.match(line)) else found.groups()
                for line in part.splitlines() if (found := INSTRUCTION.search(line)) or LABEL.match(line)]
        kernels.append(Kernel(name, int(used[name]), tuple(code)))
    return kernels


def why_not() -> str | None:
    """Say which tool is missing."""
    try:
        find_nvcc()
    except BuildError as error:
        return str(error)
    return None if find_nvdisasm() else 'nvdisasm is missing: pip install nvidia-cuda-nvdisasm'


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

WIDE = 'LDG.E.128'
# of a thread in a block of 256, so that a multiprocessor of 65536 registers holds 4, 3 or 2 blocks
OCCUPANCY = {4: 64, 3: 80, 2: 128}
# (unit, operation): 16-byte loads of a step, blocks with channels first, with channels last; in bf16
WALKS = {
    ('epilogue', 'Finish'): (4, 3, 4),
    ('epilogue_grad', 'ModulateBackward'): (4, 3, 3),
    ('epilogue_grad', 'Backward'): (4, 2, 2),
    ('bias_act', 'Forward'): (4, 4, 4),
    ('bias_act', 'Backward'): (4, 3, 3),
    ('adain', 'Style'): (4, 3, 3),
    ('adain', 'Moments'): (4, 2, 2),
    ('adain_grad', 'StyleSums'): (4, 2, 2),
    ('adain_grad', 'Backward'): (4, 2, 2),
}
# registers: 4 blocks of 128 threads, 2 of 256
FILTERS = {'fir_nhwc': 128, 'fir_nchw': 128}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('cubins')


@pytest.mark.parametrize('channels_last', [False, True], ids=['channels_first', 'channels_last'])
@pytest.mark.parametrize('unit, operation', WALKS)
def test_walk_reads_all_of_a_step_before_it_uses_any(unit, operation, channels_last, folder):
    wanted, *blocks = WALKS[unit, operation]
    name = rf'walk_mapI13__nv_bfloat16Lb{channels_last:d}ELb1E.*(?:_cu_[0-9a-f]{{8}}(?:_\d+)?|NS_){len(operation)}{operation}I'
    kernel, = [kernel for kernel in kernels_of(unit, folder) if re.search(name, kernel.name)]
    assert kernel.loads(WIDE, WIDE) == (wanted, wanted)
    if channels_last:   # among them the noise
        every, overlap = kernel.loads('LDG', WIDE)
        assert every == overlap
    assert kernel.registers <= OCCUPANCY[blocks[channels_last]]


@pytest.mark.parametrize('unit', sorted({unit for unit, _ in WALKS} | set(FILTERS)))
def test_nothing_spills(unit, folder):
    spilled = [kernel.name for kernel in kernels_of(unit, folder)
               if any(operation.startswith(('LDL', 'STL')) for operation, _ in kernel.code)]
    assert not spilled


@pytest.mark.parametrize('unit', FILTERS)
def test_registers_of_filters(unit, folder):
    used = {kernel.name: kernel.registers for kernel in kernels_of(unit, folder)}
    assert used and max(used.values()) <= FILTERS[unit]


def test_tile_is_filled_by_loads_that_overlap(folder):
    counts = {kernel.name: kernel.loads('LDG', 'LDG') for kernel in kernels_of('fir_nchw', folder)}
    assert all(wanted == 8 and started >= 7 for wanted, started in counts.values()), counts
