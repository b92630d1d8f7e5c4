"""This module reads Parquet files as Hugging Face has them, with a column of pictures and one of labels, by pyarrow, an extra.

Pictures are packed in another order than they lie in. So they are first copied out, in their order and a few at a time.
"""

import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from imago.trainer.pack.contents import Contents
from imago.trainer.pack.labels import as_text
from imago.trainer.pack.members import Member, PartMember, check_bytes
from imago.trainer.pack.shards import COPY
from imago.trainer.pack.tables import HOW_COLUMNS, LABELS, as_columns, normal
from imago.trainer.wording import listed

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import ParquetFile

HOW = 'pip install pyarrow'
AT_ONCE = 64    # rows; their pages are in memory as well


@dataclass(frozen=True, slots=True)
class ParquetMember(Member):
    """A picture in a row. To open it by itself, all rows of its group are read."""

    column: str
    group: int
    row: int      # of the group
    number: int   # of the row, in the whole file

    def open(self, max_bytes: int) -> BinaryIO:
        data = _group(self.container, self.group, self.column)[self.row].as_py() or b''
        check_bytes(len(data), max_bytes)
        return io.BytesIO(data)


def read_parquet(contents: Contents, *, labels: bool, columns: str | None) -> bool:
    """Add the rows of all such files among `contents.collections`.

    `columns` names those of the picture and of the label; without it they are found by type and name. ValueError without
    pyarrow, where no column or several may be meant, and where files differ in them.
    """
    paths = sorted(path for path in contents.collections if path.lower().endswith('.parquet'))
    first = None
    for path in paths:
        file = contents.open_collection(path)
        with _opened(file) as parquet:
            meant = _columns(parquet.schema_arrow, columns, labels, str(file))
            if meant != (first := first or meant):
                raise ValueError(f'{path} and {paths[0]} have other columns of pictures and labels, or other classes '
                                 f'({meant[:2]} and {first[:2]}); give the files of one dataset')
            picture, label, contents.class_names = meant
            texts: list[str | None] = [None] * parquet.metadata.num_rows
            if label:
                values = (value for batch in parquet.iter_batches(columns=[label]) for value in batch.column(0).to_pylist())
                texts = [None if value is None else as_text(value, f'{path}, row {row}') for row, value in enumerate(values)]
            rows = ((group, row) for group in range(parquet.num_row_groups)
                    for row in range(parquet.metadata.row_group(group).num_rows))
            for number, ((group, row), text) in enumerate(zip(rows, texts, strict=True)):
                name = f'{path}/{number:07d}'
                contents.add_held(name, ParquetMember(name, str(file), picture, group, row, number), text)
    return bool(paths)


@contextmanager
def copied_out(samples: list[tuple[Member, ...]], folder: Path) -> Iterator[list[tuple[Member, ...]]]:
    """Yield the same samples, with pictures of Parquet files copied into `folder` while the block lasts."""
    rows = defaultdict(dict)
    for member in (member for sample in samples for member in sample if isinstance(member, ParquetMember)):
        rows[member.container][member.number] = member
    if not rows:
        yield samples
        return
    copies = {}
    try:
        with (open(folder / COPY, 'wb') as out,
              tqdm(desc='copying out', total=sum(map(len, rows.values())), unit='img',
                   mininterval=0.1 if sys.stderr.isatty() else 30) as bar):
            for file in rows:
                for member, data in _pictures(file, rows[file]):
                    copies[member.name, file] = PartMember(member.name, str(folder / COPY), out.tell(), len(data))
                    out.write(data)
                    bar.update()
        yield [tuple(copies.get((member.name, member.container), member) for member in sample) for sample in samples]
    finally:
        (folder / COPY).unlink(missing_ok=True)


def _pictures(file: str, rows: dict[int, ParquetMember]) -> Iterator[tuple[ParquetMember, memoryview]]:
    """Yield the pictures in these rows of a file, in its order."""
    column, number = next(iter(rows.values())).column, 0
    with _opened(Path(file)) as parquet:
        for batch in parquet.iter_batches(AT_ONCE, columns=[column], use_threads=False):
            for value in _bytes_of(batch.column(0)):
                if number in rows:
                    yield rows[number], memoryview(value.as_buffer() or b'')
                number += 1


@contextmanager
def _opened(path: Path) -> Iterator['ParquetFile']:
    """Open a file. ValueError without pyarrow, and, while the block lasts, for whatever pyarrow finds damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f'{path} is a Parquet file, which needs an extra: {HOW}') from error
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f'{path} cannot be read as Parquet ({" ".join(str(error).split())[:300]}); get it again') from error


def _columns(schema: 'Schema', wanted: str | None, labels: bool, where: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Return the columns of the pictures' bytes, as a path of names, and of labels or None, and the names of the classes."""
    from pyarrow import types
    features = _features(schema)
    of_bytes = {}
    for column in schema:
        held = {part.name: part.type for part in column.type} if types.is_struct(column.type) else {}
        for path, kind in ((column.name, column.type), (f'{column.name}.bytes', held.get('bytes'))):
            if kind is not None and (types.is_binary(kind) or types.is_large_binary(kind)):
                of_bytes[column.name] = path
    classes = {name: tuple(map(str, feature['names'])) for name, feature in features.items()
               if feature.get('_type') == 'ClassLabel' and isinstance(feature.get('names'), list) and name in schema.names}
    header = f'{where} has the columns {listed(schema.names)}'
    if wanted:
        picture, label = (schema.names[column] for column in as_columns(wanted, schema.names, where))
        if picture not in of_bytes:
            raise ValueError(f'--columns {wanted}: {picture!r} holds no bytes of pictures; {header}')
    else:
        pictures = [name for name in of_bytes if features.get(name, {}).get('_type') == 'Image'] or list(of_bytes)
        named = list(classes) or [name for name in schema.names if normal(name) in LABELS]
        if len(pictures) != 1 or labels and len(named) > 1:
            what = 'no column of pictures' if not pictures else 'several columns that may be meant, ' + listed(
                pictures if len(pictures) > 1 else named)
            raise ValueError(f'{header}: {what}; {HOW_COLUMNS if pictures else "give another file"}')
        picture, label = pictures[0], named[0] if named else None
    label = label if labels else None
    return of_bytes[picture], label, classes.get(label, ())


def _features(schema: 'Schema') -> dict[str, dict]:
    """Return what the `datasets` library has written about the columns."""
    try:
        found = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))['info']['features']
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _bytes_of(column: Any) -> Any:
    """Return the array of bytes, which may be a part of a struct."""
    from pyarrow import compute, types
    return compute.struct_field(column, 'bytes') if types.is_struct(column.type) else column


@lru_cache(1)
def _group(path: str, group: int, column: str) -> Any:
    """Return the pictures of a group of rows as an array of pyarrow's."""
    with _opened(Path(path)) as file:
        return _bytes_of(file.read_row_group(group, columns=[column], use_threads=False).column(0).combine_chunks())
