"""This file reads checkpoints that may be a stranger's: nothing in them is run, and no file outside of their folder is read.

`torch.distributed.checkpoint` unpickles `.metadata`, and any entry that claims to be no tensor, without restriction.
"""

import pickle
from pathlib import Path, PurePath

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorStorageMetadata
from torch.serialization import _get_layout

from imago.trainer.data.reading import open_regular

_ADMITTED = {(kind.__module__, kind.__qualname__): kind for kind in (
    Metadata, TensorStorageMetadata, dcp.ChunkStorageMetadata, dcp.metadata.TensorProperties, dcp.metadata.MetadataIndex,
    dcp.metadata.StorageMeta, _MEM_FORMAT_ENCODING, _StorageInfo, torch.Size, _get_layout)}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if module.startswith('pathlib') and name.endswith('Path'):
            return PurePath     # this is where the checkpoint was written, on any system
        if module == 'torch' and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f'it names {module}.{name}, which no checkpoint of Imago does')
        return _ADMITTED[module, name]


class CheckpointReader(dcp.FileSystemReader):
    """This is DCP's reader, for tensors only."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError for other metadata, and OSError if there is none; DCP would show stack traces for both."""
        super().__init__(folder)
        self._metadata = self._read(folder / '.metadata')

    def _read(self, path: Path) -> Metadata:
        try:
            with open_regular(path) as file:
                metadata = _Unpickler(file).load()
            _check(metadata, path.parent)
        except OSError:
            raise
        except Exception as error:  # a forged pickle can make the unpickler raise anything
            why = ' '.join(str(error).split())[:200]
            raise ValueError(f'{path} is damaged or forged ({why}); do not use this checkpoint') from error
        return metadata

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        self._metadata.storage_meta = dcp.metadata.StorageMeta(load_id=self.load_id)
        return self._metadata

    def sizes(self) -> dict[str, torch.Size]:
        """Return the sizes of all tensors, by dotted names."""
        return {name: entry.size for name, entry in self._metadata.state_dict_metadata.items() if hasattr(entry, 'size')}


def load_tensors(tree: dict, reader: CheckpointReader, **how: object) -> None:
    """Fill the tensors [...] of `tree` in place from a checkpoint, as `dcp.load` does. Raises ValueError if it lacks one or is
    forged."""
    try:
        dcp.load(tree, storage_reader=reader, **how)
    except CheckpointException as error:    # it is no Exception, and has all causes in one text
        raise ValueError(f'{reader.path} cannot be loaded: {first_cause(error)}') from error


def first_cause(error: BaseException) -> str:
    """Return the first line of the innermost reason; DCP wraps the errors of each rank in one of its own."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _check(metadata: object, folder: Path) -> None:
    if not isinstance(metadata, Metadata):
        raise ValueError(f'it holds a {type(metadata).__name__}')
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f'{name} is no tensor but {type(entry).__name__}')
    for index, part in metadata.storage_data.items():
        if not is_plain_name(part.relative_path) or part.transform_descriptors:
            raise ValueError(f'{index.fqn} lies in {part.relative_path!r}')
    for name in {part.relative_path for part in metadata.storage_data.values()}:
        open_regular(folder / name).close()     # this refuses a pipe, on which torch would wait


def is_plain_name(name: str) -> bool:
    """Tell whether the name is that of a file in the folder itself."""
    return Path(name).name == name
