"""A packed dataset, and random access to the samples in its shards. Damaged samples are named and replaced."""

import contextlib
import io
import os
import re
import struct
import tarfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import numpy as np
from PIL import Image
from webdataset.gopen import gopen_schemes

from trainer.data.manifest import FILE_NAME, Manifest, Shard, sample_key
from trainer.data.sources import Folder, Remote, ShardError

SUFFIXES = ('webp', 'png', 'jpg')
FORMATS = ('WEBP', 'PNG', 'JPEG')
MODES = {1: 'L', 3: 'RGB'}
# All that Pillow raises on broken pictures, and our own ValueErrors.
DAMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Dataset:
    """A manifest and where its shards lie; cheap to send to another process."""

    manifest: Manifest
    source: Folder | Remote

    def open(self, shard: Shard) -> BinaryIO:
        """ShardError if the shard cannot be had or its size is not the manifest's."""
        file = self.source.open(shard)
        size = os.fstat(file.fileno()).st_size
        if size != shard.bytes:
            file.close()
            raise ShardError(f'{shard.name} ({file.name}) has {size} bytes, the manifest says {shard.bytes}; '
                             'copy it again')
        return file


def open_dataset(path_or_url: str | Path, *, cache_dir: str | Path | None = None, cache_gb: float = 20.0,
                 attempts: int = 6, retry_delay: float = 1.0) -> Dataset:
    """Read the manifest of a local folder, of `http(s)://host/folder`, or through `pipe:CMD`.

    In CMD `{}` stands for the file's name, e.g. `pipe:ssh host cat /data/emoji/{}`. `cache_dir` (default: the user's
    cache folder) holds up to `cache_gb` of fetched shards. A fetch is tried `attempts` times, first `retry_delay`
    seconds and then ever twice as long apart. ValueError if it is no dataset, ShardError if it cannot be reached.
    """
    where = str(path_or_url).removesuffix('/' + FILE_NAME).rstrip('/')
    scheme = urlparse(where).scheme
    if where.startswith('pipe:') and '{}' not in where:
        raise ValueError(f'{where} has no {{}} to stand for the file name; write e.g. pipe:ssh host cat /data/{{}}')
    if scheme and scheme not in gopen_schemes:
        raise ValueError(f'{where}: no reader for {scheme}:, only for folders, http(s):, gs: and hf:; '
                         'use pipe:COMMAND with {} for the file name')
    if scheme:
        cache = Path(cache_dir or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'imago')
        source = Remote(where, cache, cache_gb, attempts, retry_delay)
    else:
        source = Folder(Path(where))
    manifest = Manifest.from_json(source.read_manifest(), where)
    for shard in manifest.shards:
        # Both become part of paths, and a manifest may be a stranger's.
        if Path(shard.name).name != shard.name or not re.fullmatch('[0-9a-f]{64}', shard.sha256):
            raise ValueError(f'{where}: {shard.name!r} with SHA-256 {shard.sha256!r} is no shard; pack it again')
    return Dataset(manifest, source)


@dataclass(frozen=True)
class Sample:
    image: np.ndarray  # [HWC] uint8
    label: int
    key: str


class SampleReader:
    """Reads samples at `resolution` (height, width); keeps `max_open` shards open with their indexes in memory."""

    def __init__(self, dataset: Dataset, resolution: tuple[int, int], max_open: int):
        self.dataset = dataset
        self.resolution = resolution
        self._open = lru_cache(max_open)(self._open_shard)

    def read(self, shard: int, number: int) -> tuple[Sample, list[str]]:
        """Sample `number` of a shard, or the next good one (cyclic); and `shard/member: reason` of each damaged one
        passed over. ShardError if the shard holds no good one or cannot be read.
        """
        entry = self.dataset.manifest.shards[shard]
        damaged = []
        for step in range(entry.samples):
            key = sample_key(entry.first + (number + step) % entry.samples)
            members = self._open(shard)
            name = members.picture(key)
            try:
                return self._decode(members, name, key), damaged
            except DAMAGE as error:
                damaged.append(f'{entry.name}/{name}: {error}')
        raise ShardError(f'{entry.name}: none of its {entry.samples} samples is good; the first tried: {damaged[0]}')

    def read_partner(self, shard: int, first: Sample, choice: int) -> tuple[Sample, list[str]]:
        """Another good sample of the class of `first`, number `choice` of those in its shard (cyclic); or in the next
        shard that has one. Also names the damaged ones passed over. ShardError if there is none.
        """
        shards, damaged = self.dataset.manifest.shards, []
        for number in (*range(shard, len(shards)), *range(shard)):
            members = self._open(number)
            keys = [key for key in members.keys_by_label.get(first.label, ()) if key != first.key]
            for turn in range(len(keys)):
                key = keys[(choice + turn) % len(keys)]
                try:
                    return self._decode(members, members.picture(key), key), damaged
                except DAMAGE as error:
                    damaged.append(f'{shards[number].name}/{members.picture(key)}: {error}')
        raise ShardError(f'no other good picture of the class of {first.key} ({first.label}) in any shard')

    def read_class(self, shard: int, label: int, count: int) -> list[Sample]:
        """The first good samples of a class in a shard, at most `count`. ShardError if the shard cannot be read."""
        members, found = self._open(shard), []
        for key in members.keys_by_label.get(label, ()):
            if len(found) == count:
                break
            with contextlib.suppress(*DAMAGE):   # the stream tells of it
                found.append(self._decode(members, members.picture(key), key))
        return found

    def _open_shard(self, shard: int) -> 'Members':
        entry = self.dataset.manifest.shards[shard]
        return Members(self.dataset.open(entry), entry.name)

    def _decode(self, members: 'Members', name: str, key: str) -> Sample:
        manifest = self.dataset.manifest
        image = Image.open(io.BytesIO(members.read(name)), formats=FORMATS)
        if manifest.resolution and image.size[::-1] != manifest.resolution:
            raise ValueError(f'{image.height}x{image.width} pixels, the dataset has {manifest.resolution}')
        if image.mode != MODES[manifest.channels]:
            image = image.convert(MODES[manifest.channels])
        if image.size[::-1] != self.resolution:
            image = image.resize(self.resolution[::-1], Image.Resampling.LANCZOS)
        pixels = np.asarray(image).reshape(*self.resolution, manifest.channels)  # [HWC]
        return Sample(pixels, self._label(members, key), key)

    def _label(self, members: 'Members', key: str) -> int:
        classes = len(self.dataset.manifest.class_names)
        if not classes:
            return 0
        label = int(members.read(f'{key}.cls'))
        if not 0 <= label < classes:
            raise ValueError(f'its class is {label}, the dataset has {classes}')
        return label


class Members:
    """The members of one open tar, by name."""

    def __init__(self, file: BinaryIO, shard: str):
        self.file = file
        self.shard = shard
        self.spans = self._scan(os.fstat(file.fileno()).st_size)  # name -> (offset, bytes)

    @cached_property
    def keys_by_label(self) -> dict[int, list[str]]:
        """The samples of each class. Labels that are no numbers are left to whoever reads their sample."""
        found: dict[int, list[str]] = {}
        for name in sorted(self.spans):
            if name.endswith('.cls') and (label := self.read(name).strip()).isdigit():
                found.setdefault(int(label), []).append(name.removesuffix('.cls'))
        return found

    def picture(self, key: str) -> str:
        """The name of the picture of a sample; the bare key if there is none."""
        return next((name for name in (f'{key}.{suffix}' for suffix in SUFFIXES) if name in self.spans), key)

    def read(self, name: str) -> bytes:
        """ValueError if the member is missing or cut short, ShardError if the tar cannot be read."""
        if name not in self.spans:
            raise ValueError(f'{name} is not in the tar (lost with its header?)')
        offset, size = self.spans[name]
        data = self._pread(offset, size)
        if len(data) < size:
            raise ValueError(f'{name} is cut short, {len(data)} of {size} bytes')
        return data

    def _scan(self, end: int) -> dict[str, tuple[int, int]]:
        spans, offset = {}, 0
        while offset + tarfile.BLOCKSIZE <= end:
            header = self._pread(offset, tarfile.BLOCKSIZE)
            offset += tarfile.BLOCKSIZE
            try:
                info = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape')
            except tarfile.HeaderError:
                continue  # zeros at the end, or a broken header: whole members may follow
            if info.isreg() and info.size >= 0:
                spans[info.name] = offset, info.size
            offset += max(-(-info.size // tarfile.BLOCKSIZE), 0) * tarfile.BLOCKSIZE  # a forged size would lead back here
        return spans

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self.file.fileno(), size, offset)
        except OSError as error:
            raise ShardError(f'{self.shard} cannot be read: {error}') from error
