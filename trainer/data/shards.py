"""A packed dataset, and random access to the samples in its shards. Damaged samples are named and replaced."""

import contextlib
import hashlib
import io
import os
import struct
import tarfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from imago.trainer.data.checksums import LINE, MEMBER, checksum, parse_checksums
from imago.trainer.data.conditions import CONDITION, from_bytes
from imago.trainer.data.locations import check_whole, masked, scheme_of
from imago.trainer.data.manifest import FILE_NAME, PAIRED, SINGLE, Manifest, Shard, sample_key
from imago.trainer.data.order import place_of
from imago.trainer.data.sources import Folder, Remote, ShardError

SUFFIXES = ('webp', 'png', 'jpg')
FORMATS = ('WEBP', 'PNG', 'JPEG')
MODES = {1: 'L', 3: 'RGB'}
# All that Pillow raises on broken pictures, and our own ValueErrors.
DAMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
Place = tuple[float, float]   # of a part in a picture, see order.place_of


class Damaged(Exception):
    """A sample that cannot be shown: the name of its member, and why."""


@dataclass(frozen=True)
class Dataset:
    """A manifest and where its shards lie; cheap to send to another process.

    `crop` is the (height, width) in pixels of the part that is shown of each picture; None: all of it is. `b` is a dataset
    whose pictures are shown beside these, in an order of its own, as those of domain b; these are then of domain a.
    """

    manifest: Manifest
    source: Folder | Remote
    crop: tuple[int, int] | None = None
    b: 'Dataset | None' = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Of the pictures that are shown at one index."""
        return PAIRED if self.b else self.manifest.domains

    def digest(self) -> str:
        """SHA-256 of all that may be shown, the same wherever it lies."""
        own = self.manifest.digest()
        return hashlib.sha256(f'{own} {self.b.digest()}'.encode()).hexdigest() if self.b else own

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of what is shown, before it is brought to a network's size; None: it varies."""
        return self.crop or self.manifest.resolution

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
                 crop: tuple[int, int] | None = None, attempts: int = 6, retry_delay: float = 1.0) -> Dataset:
    """Read the manifest of a local folder, of `http(s)://host/folder`, `gs://` or `hf://`, or through `pipe:CMD`.

    In CMD `{}` stands for the file's name, e.g. `pipe:ssh host cat /data/emoji/{}`. `cache_dir` (default: the user's
    cache folder) holds up to `cache_gb` of fetched shards. A fetch is tried `attempts` times, first `retry_delay`
    seconds and then ever twice as long apart. `crop`: see `Dataset`. ValueError if it is no dataset, ShardError if it cannot
    be reached.
    """
    where = str(path_or_url)
    scheme = scheme_of(where)
    if scheme:
        check_whole(where)
        where = where if scheme == 'pipe' else where.removesuffix('/' + FILE_NAME)
        cache = Path(cache_dir or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'imago')
        source = Remote(where, cache, cache_gb, attempts, retry_delay)
    else:
        path = Path(where)
        source = Folder(path.parent if path.name == FILE_NAME else path)
    return Dataset(Manifest.from_json(source.read_manifest(), masked(where)), source, crop)


@dataclass(frozen=True)
class Sample:
    pictures: dict[str, np.ndarray]  # domain -> [HWC] uint8
    label: int
    key: str
    condition: np.ndarray | None = None    # float32 of the manifest's shape

    @property
    def image(self) -> np.ndarray:
        """The picture of its only domain, or of a, [HWC] uint8."""
        return next(iter(self.pictures.values()))


def read_contents(manifest: Manifest, members: 'Members', key: str) -> tuple[dict[str, bytes], bytes, np.ndarray | None]:
    """The pictures of a sample by the names of their members, its label and its condition. Damaged unless all are whole."""
    names = [members.picture(key, domain) for domain in manifest.domains]
    name, shape = names[0], manifest.condition_shape
    try:
        label = members.read(f'{key}.cls') if manifest.class_names else b''
        values = members.read(f'{key}.{CONDITION}') if shape else b''
        contents = {}
        for name in names:
            contents[name] = members.read(name)
        members.check(key, *contents.values(), label, values)
        return contents, label, from_bytes(values, shape) if shape else None
    except DAMAGE as error:
        raise Damaged(f'{name}: {error}') from error


class SampleReader:
    """Reads samples at `resolution` (height, width); keeps `max_open` shards open with their indexes in memory.

    Where the dataset is cropped, `place` says where in a picture the part lies that is shown (`order.place_of`); without one
    it is drawn by the sample's key.
    """

    def __init__(self, dataset: Dataset, resolution: tuple[int, int], max_open: int):
        self.dataset = dataset
        self.resolution = resolution
        self._open = lru_cache(max_open)(self._open_shard)

    def read(self, shard: int, number: int, place: Place | None = None) -> tuple[Sample, list[str]]:
        """Sample `number` of a shard, or the next good one (cyclic); and `shard/member: reason` of each damaged one
        passed over. ShardError if the shard holds no good one or cannot be read.
        """
        entry = self.dataset.manifest.shards[shard]
        damaged = []
        for step in range(entry.samples):
            key = sample_key(entry.first + (number + step) % entry.samples)
            try:
                return self._decode(self._open(shard), key, place), damaged
            except Damaged as error:
                damaged.append(f'{entry.name}/{error}')
        raise ShardError(f'{entry.name}: none of its {entry.samples} samples is good; the first tried: {damaged[0]}')

    def read_partner(self, shard: int, first: Sample, choice: int, place: Place | None = None) -> tuple[Sample, list[str]]:
        """Another good sample of the class of `first`, number `choice` of those in its shard (cyclic); or in the next
        shard that has one. Also names the damaged ones passed over. ShardError if there is none.
        """
        shards, damaged = self.dataset.manifest.shards, []
        for number in (*range(shard, len(shards)), *range(shard)):
            members = self._open(number)
            keys = [key for key in members.keys_by_label.get(first.label, ()) if key != first.key]
            for turn in range(len(keys)):
                try:
                    return self._decode(members, keys[(choice + turn) % len(keys)], place), damaged
                except Damaged as error:
                    damaged.append(f'{shards[number].name}/{error}')
        raise ShardError(f'no other good picture of the class of {first.key} ({first.label}) in any shard')

    def read_class(self, shard: int, label: int, count: int) -> list[Sample]:
        """The first good samples of a class in a shard, at most `count`. ShardError if the shard cannot be read."""
        members, found = self._open(shard), []
        for key in members.keys_by_label.get(label, ()):
            if len(found) == count:
                break
            with contextlib.suppress(Damaged):   # the stream tells of it
                found.append(self._decode(members, key, None))
        return found

    def _open_shard(self, shard: int) -> 'Members':
        entry = self.dataset.manifest.shards[shard]
        return Members(self.dataset.open(entry), entry)

    def condition(self, shard: int, number: int) -> np.ndarray:
        """That of sample `number` of a shard, or of the next good one (cyclic). ShardError if none is good."""
        entry = self.dataset.manifest.shards[shard]
        for step in range(entry.samples):
            with contextlib.suppress(Damaged):   # the stream tells of it
                return read_contents(self.dataset.manifest, self._open(shard), sample_key(entry.first + (number + step) % entry.samples))[2]
        raise ShardError(f'{entry.name}: none of its {entry.samples} samples is good')

    def _decode(self, members: 'Members', key: str, place: Place | None) -> Sample:
        """The sample of that key. Damaged names a member of it, and why."""
        contents, label, condition = read_contents(self.dataset.manifest, members, key)
        pictures, sizes = {}, set()
        try:
            for domain, (name, content) in zip(self.dataset.manifest.domains, contents.items(), strict=True):
                image = Image.open(io.BytesIO(content), formats=FORMATS)
                sizes.add(image.size)
                if len(sizes) > 1:
                    raise ValueError(f'{image.height}x{image.width} pixels, and the other picture of its pair has another size')
                pictures[domain] = self._pixels(image, place or place_of('crop', key))
            return Sample(pictures, self._class_of(label), key, condition)
        except DAMAGE as error:
            raise Damaged(f'{name}: {error}') from error

    def _pixels(self, image: Image.Image, place: Place) -> np.ndarray:
        """What is shown of a picture, [HWC] uint8 at the reader's resolution. ValueError if it has not the size it must have."""
        manifest, crop = self.dataset.manifest, self.dataset.crop
        if manifest.resolution and image.size[::-1] != manifest.resolution:
            raise ValueError(f'{image.height}x{image.width} pixels, the dataset has {manifest.resolution}')
        if image.mode != MODES[manifest.channels]:
            image = image.convert(MODES[manifest.channels])
        if crop:
            room = image.height - crop[0], image.width - crop[1]
            if min(room) < 0:
                raise ValueError(f'{image.height}x{image.width} pixels are too few for data.crop={crop[0]}x{crop[1]}')
            top, left = (int(share * (most + 1)) for share, most in zip(place, room))
            image = image.crop((left, top, left + crop[1], top + crop[0]))
        if image.size[::-1] != self.resolution:
            image = image.resize(self.resolution[::-1], Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(*self.resolution, manifest.channels)

    def _class_of(self, label: bytes) -> int:
        classes = len(self.dataset.manifest.class_names)
        if not classes:
            return 0
        number = int(label)
        if not 0 <= number < classes:
            raise ValueError(f'its class is {number}, the dataset has {classes}')
        return number


class Members:
    """The members of one open tar, by name. ShardError unless its checksums are those in the manifest, if it has any."""

    def __init__(self, file: BinaryIO, shard: Shard):
        self.file = file
        self.shard = shard
        self.size = os.fstat(file.fileno()).st_size
        self.spans = self._scan()  # name -> (offset, bytes)
        self._checksums = None if shard.checksums is None else self._read_checksums()

    def check(self, key: str, *parts: bytes) -> None:
        """ValueError if these are not the bytes that were packed, as far as the shard can tell."""
        if self._checksums is not None and self._checksums.get(key) != checksum(*parts):
            raise ValueError('its bytes are not those that were packed, says their CRC-32')

    def _read_checksums(self) -> dict[str, int]:
        try:
            if self.spans.get(MEMBER, (0, 0))[1] != self.shard.samples * LINE:
                raise ValueError(f'it has no {MEMBER} of {self.shard.samples} samples')
            return parse_checksums(self.read(MEMBER), self.shard)
        except ValueError as error:
            raise ShardError(f'{self.shard.name}: {error}; copy the shard again') from error

    @cached_property
    def keys_by_label(self) -> dict[int, list[str]]:
        """The samples of each class. Labels that are no numbers are left to whoever reads their sample."""
        found: dict[int, list[str]] = {}
        for name in sorted(self.spans):
            if name.endswith('.cls') and (label := self.read(name).strip()).isdigit() and len(label) < 10:
                found.setdefault(int(label), []).append(name.removesuffix('.cls'))
        return found

    def picture(self, key: str, domain: str) -> str:
        """The name of a sample's picture of that domain; without its suffix if there is none."""
        stem = key if (domain,) == SINGLE else f'{key}.{domain}'
        return next((name for name in (f'{stem}.{suffix}' for suffix in SUFFIXES) if name in self.spans), stem)

    def read(self, name: str) -> bytes:
        """ValueError if the member is missing or cut short, ShardError if the tar cannot be read."""
        if name not in self.spans:
            raise ValueError(f'{name} is not in the tar (lost with its header?)')
        offset, size = self.spans[name]
        data = self._pread(offset, min(size, self.size - offset))   # a header may promise any size
        if len(data) < size:
            raise ValueError(f'{name} is cut short, {len(data)} of {size} bytes')
        return data

    def _scan(self) -> dict[str, tuple[int, int]]:
        spans, offset = {}, 0
        while offset + tarfile.BLOCKSIZE <= self.size:
            header = self._pread(offset, tarfile.BLOCKSIZE)
            offset += tarfile.BLOCKSIZE
            try:
                info = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape')
            except tarfile.HeaderError:
                continue  # zeros at the end, or a broken header: whole members may follow
            if info.size < 0:
                continue  # forged, it would lead back here
            if info.isreg():
                spans[info.name] = offset, info.size
            if offset + info.size <= self.size:   # else cut short or forged: whole members may follow
                offset += -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return spans

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self.file.fileno(), size, offset)
        except OSError as error:
            raise ShardError(f'{self.shard.name} cannot be read: {error}') from error
