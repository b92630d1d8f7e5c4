"""A packed dataset gives random access to the samples in its shards. Damaged samples are named and replaced."""

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
from imago.trainer.data.manifest import FILE_NAME, SINGLE, TWO_DOMAINS, Manifest, Shard, sample_key
from imago.trainer.data.order import place_of
from imago.trainer.data.sources import Folder, Remote, ShardError

SUFFIXES = ('webp', 'png', 'jpg')
FORMATS = ('WEBP', 'PNG', 'JPEG')
MODES = {1: 'L', 3: 'RGB'}
# Pillow raises these on broken pictures; the ValueErrors are also our own.
DAMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
Place = tuple[float, float]   # where a crop lies in its picture, see order.place_of


class Damaged(Exception):
    """A sample cannot be shown. The message names its member, and says why."""


@dataclass(frozen=True)
class Dataset:
    """A dataset is a manifest and the place where its shards lie. It is cheap to send to another process.

    `crop` is the (height, width) in pixels of the part of each picture that is shown; None shows all of it. `b` is a dataset
    whose pictures are shown beside these, in an order of their own. They are then domain b, and these are domain a.
    """

    manifest: Manifest
    source: Folder | Remote
    crop: tuple[int, int] | None = None
    b: 'Dataset | None' = None

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the pictures that are shown at one index."""
        return TWO_DOMAINS if self.b else self.manifest.domains

    def digest(self) -> str:
        """Return the SHA-256 of all that may be shown, which is the same wherever it lies."""
        own = self.manifest.digest()
        return hashlib.sha256(f'{own} {self.b.digest()}'.encode()).hexdigest() if self.b else own

    @property
    def size(self) -> tuple[int, int] | None:
        """The (height, width) in pixels of what is shown, before it is resized for a network; None if it varies."""
        return self.crop or self.manifest.resolution

    def open(self, shard: Shard) -> BinaryIO:
        """Open a shard. Raises ShardError if it cannot be had or its size is not the manifest's."""
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
    cache folder) holds up to `cache_gb` of fetched shards. A fetch is tried `attempts` times; the first pause
    is `retry_delay` seconds, and each further one is twice as long. `Dataset` explains `crop`. Raises ValueError if it is no
    dataset, ShardError if it cannot be reached.
    """
    where = str(path_or_url)
    scheme = scheme_of(where)
    if scheme:
        check_whole(where)
        where = where if scheme == 'pipe' else where.removesuffix('/' + FILE_NAME)
        cache = Path(cache_dir or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'imago')
        source: Folder | Remote = Remote(where, cache, cache_gb, attempts, retry_delay)
    else:
        path = Path(where)
        source = Folder(path.parent if path.name == FILE_NAME else path)
    return Dataset(Manifest.from_json(source.read_manifest(), masked(where)), source, crop)


def check_resolution(dataset: Dataset, resolution: tuple[int, int]) -> None:
    """Raise ValueError unless the pictures, or the parts of them that are shown, can have `resolution` (height, width)."""
    if dataset.b:
        check_resolution(dataset.b, resolution)
    manifest, crop, (height, width) = dataset.manifest, dataset.crop, resolution
    fix = f'pack them with: imago pack --resolution {height}x{width}'
    least = manifest.resolution or manifest.smallest
    if crop and least and (crop[0] > least[0] or crop[1] > least[1]):
        raise ValueError(f'data.crop={crop[0]}x{crop[1]} is larger than pictures of the dataset, whose sides are at least '
                         f'{least[0]}x{least[1]}; use a smaller one, such as {min(crop[0], least[0])}x{min(crop[1], least[1])}, '
                         'or pack larger pictures')
    if dataset.size is None:
        raise ValueError(f'resolution={height}x{width} of pictures that were packed at their own sizes; show parts of them by '
                         f'data.crop={height}x{width}, or {fix}')
    whole = 'of data.crop={}x{}' if crop else 'of the {}x{} that the pictures were packed at'
    if height < 1 or height > dataset.size[0] or height * dataset.size[1] != width * dataset.size[0]:
        raise ValueError(f'resolution={height}x{width} must have the aspect ratio {whole.format(*dataset.size)}, and be no '
                         f'larger; {"change one of them" if crop else fix}')


@dataclass(frozen=True)
class Sample:
    pictures: dict[str, np.ndarray]  # domain -> [HWC] uint8
    label: int
    key: str
    condition: np.ndarray | None = None    # float32 of the manifest's shape

    @property
    def image(self) -> np.ndarray:
        """The picture of its only domain, or of domain a, [HWC] uint8."""
        return next(iter(self.pictures.values()))


def read_contents(manifest: Manifest, members: 'Members', key: str) -> tuple[dict[str, bytes], bytes, np.ndarray | None]:
    """Return a sample's pictures by their members' names, its label and its condition. Raises Damaged unless all are whole."""
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
    """This reads samples at `resolution` (height, width). It keeps `max_open` shards open with their indexes in memory.

    Where the dataset is cropped, `place` says where in a picture the crop lies (`order.place_of`); without it the sample's
    key draws the place.
    """

    def __init__(self, dataset: Dataset, resolution: tuple[int, int], max_open: int):
        self.dataset = dataset
        self.resolution = resolution
        self._open = lru_cache(max_open)(self._open_shard)

    def read(self, shard: int, number: int, place: Place | None = None) -> tuple[Sample, list[str]]:
        """Return sample `number` of a shard, or the next good one (cyclic), and `shard/member: reason` for each damaged one
        that was passed over. Raises ShardError if the shard holds no good one or cannot be read.
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
        """Return another good sample of the class of `first`, and the damaged ones that were passed over, as `read` does.

        It is number `choice` (cyclic) of those in the shard, or in the next shard that has one. Raises ShardError if there is
        none.
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
        """Return the first good samples of a class in a shard, at most `count`. Raises ShardError if the shard cannot be read."""
        members, found = self._open(shard), []
        for key in members.keys_by_label.get(label, ()):
            if len(found) == count:
                break
            with contextlib.suppress(Damaged):   # the stream reports it
                found.append(self._decode(members, key, None))
        return found

    def _open_shard(self, shard: int) -> 'Members':
        entry = self.dataset.manifest.shards[shard]
        return Members(self.dataset.open(entry), entry)

    def condition(self, shard: int, number: int) -> np.ndarray:
        """Return the condition, float32 [d] or [T, d], of sample `number` of a shard, or of the next good one (cyclic).

        Raises ShardError if none is good.
        """
        entry = self.dataset.manifest.shards[shard]
        for step in range(entry.samples):
            with contextlib.suppress(Damaged):   # the stream reports it
                return read_contents(self.dataset.manifest, self._open(shard),
                                     sample_key(entry.first + (number + step) % entry.samples))[2]
        raise ShardError(f'{entry.name}: none of its {entry.samples} samples is good')

    def _decode(self, members: 'Members', key: str, place: Place | None) -> Sample:
        """Return the sample of that key. Damaged names a member of it, and says why."""
        contents, label, condition = read_contents(self.dataset.manifest, members, key)
        pictures, sizes = {}, set()
        try:
            for domain, (name, content) in zip(self.dataset.manifest.domains, contents.items(), strict=True):  # noqa: B007
                image = Image.open(io.BytesIO(content), formats=FORMATS)
                sizes.add(image.size)
                if len(sizes) > 1:
                    raise ValueError(f'{image.height}x{image.width} pixels, and the other picture of its pair has another size')
                pictures[domain] = self._pixels(image, place or place_of('crop', key))
            return Sample(pictures, self._class_of(label), key, condition)
        except DAMAGE as error:
            raise Damaged(f'{name}: {error}') from error

    def _pixels(self, image: Image.Image, place: Place) -> np.ndarray:
        """Return what is shown of a picture, [HWC] uint8 at the reader's resolution. Raises ValueError if its size is wrong."""
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
    """This gives the members of an open tar by name. It raises ShardError if its checksums differ from the manifest's, if any."""

    def __init__(self, file: BinaryIO, shard: Shard):
        self.file = file
        self.shard = shard
        self.size = os.fstat(file.fileno()).st_size
        self.spans = self._scan()  # name -> (offset, bytes)
        self._checksums = None if shard.checksums is None else self._read_checksums()

    def check(self, key: str, *parts: bytes) -> None:
        """Raise ValueError if these are not the bytes that were packed, as far as the shard can tell."""
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
        """The keys of each class's samples. A label that is no number is reported when its sample is read."""
        found: dict[int, list[str]] = {}
        for name in sorted(self.spans):
            if name.endswith('.cls') and (label := self.read(name).strip()).isdigit() and len(label) < 10:
                found.setdefault(int(label), []).append(name.removesuffix('.cls'))
        return found

    def picture(self, key: str, domain: str) -> str:
        """Return the name of a sample's picture of that domain, or its name without a suffix if there is none."""
        stem = key if (domain,) == SINGLE else f'{key}.{domain}'
        return next((name for name in (f'{stem}.{suffix}' for suffix in SUFFIXES) if name in self.spans), stem)

    def read(self, name: str) -> bytes:
        """Return a member's content. Raises ValueError if it is missing or cut short, ShardError if the tar cannot be read."""
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
                continue  # it is zeros at the end, or a broken header: whole members may follow
            if info.size < 0:
                continue  # such a forged size would lead back here
            if info.isreg():
                spans[info.name] = offset, info.size
            if offset + info.size <= self.size:   # else it is cut short or forged, and whole members may follow
                offset += -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return spans

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self.file.fileno(), size, offset)
        except OSError as error:
            raise ShardError(f'{self.shard.name} cannot be read: {error}') from error
