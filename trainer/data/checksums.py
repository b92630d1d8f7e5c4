"""A CRC-32 for each sample, in the last member of its shard, which the manifest knows by its SHA-256.

A flipped bit in a picture or label is found when it is read, and another shard of the same size when it is opened. Readers of
WebDataset pass over a member that is called so. Its lines: `000000017 89abcdef`, in the order of the samples.
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable

from imago.trainer.data.manifest import Shard, sample_key

MEMBER = '__checksums__'
LINE = len(f'{sample_key(0)} {0:08x}\n')   # bytes


def checksum(*parts: bytes) -> int:
    """The CRC-32 of a sample's parts as they are written, one after another: pictures by domain, label, condition."""
    return zlib.crc32(b''.join(parts))


def padded(size: int) -> int:
    """Bytes that a member of `size` bytes takes in a tar, with its header."""
    return tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))


def append_checksums(tar: tarfile.TarFile, first: int, sums: Iterable[int]) -> str:
    """Write those of the samples from number `first` on into `tar`, as its last member. Returns their SHA-256."""
    text = ''.join(f'{sample_key(number)} {crc:08x}\n' for number, crc in enumerate(sums, first)).encode()
    info = tarfile.TarInfo(MEMBER)   # the same for every writer, and on any day
    info.size, info.mode, info.uname, info.gname = len(text), 0o444, 'root', 'root'
    tar.addfile(info, io.BytesIO(text))
    return hashlib.sha256(text).hexdigest()


def parse_checksums(data: bytes, shard: Shard) -> dict[str, int]:
    """Key -> CRC-32. ValueError unless these are the checksums that the manifest knows."""
    if hashlib.sha256(data).hexdigest() != shard.checksums:
        raise ValueError(f'its {MEMBER} are not those in the manifest: it is damaged, or of another dataset')
    return {key.decode(): int(crc, 16) for key, crc in map(bytes.split, data.splitlines())}
