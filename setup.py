from setuptools import setup

setup(
    name='imago-gan',
    version='0.1.0',
    description='Trains GANs for high-resolution pictures, from one laptop to many nodes',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=['trainer', 'trainer.data', 'trainer.models', 'trainer.tools', 'kernels', 'launch', 'configs'],
    package_data={'configs': ['*.yaml']},
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
    ],
    extras_require={'test': ['pytest>=8.0']},
    entry_points={'console_scripts': ['imago=launch.cli:main']},
)
