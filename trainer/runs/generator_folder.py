"""Folders that a trained generator comes from, or goes to. Torch-free, so that a wrong one is refused at once."""

from pathlib import Path

from imago.trainer.runs.run_folder import CONFIG_FILE
from imago.trainer.runs.seal import SEAL

WEIGHTS, ABOUT = 'generator.safetensors', 'generator.json'   # of an export


def check_source(folder: Path) -> None:
    """Raise ValueError unless there is a folder, which may hold a generator."""
    if not folder.is_dir():
        raise ValueError(f'no such folder: {folder}; give a run folder, a checkpoint or an export')


def is_generator(path: Path) -> bool:
    """Whether it is a run folder, a checkpoint or an export."""
    return any((path / name).exists() for name in (ABOUT, SEAL, CONFIG_FILE, 'checkpoints'))


def check_new(out: Path) -> None:
    """Raise ValueError unless an export may be made at `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'{out} exists and is not an empty folder; choose another')
