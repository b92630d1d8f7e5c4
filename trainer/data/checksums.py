"""The last member of a shard holds a CRC-32 for each sample, and the manifest holds the SHA-256 of this member.

So a flipped bit in a sample is found when the sample is read, and a wrong shard of the right size when the shard is opened.
Readers of WebDataset skip a member with such a name. Its lines are like `000000017 89abcdef`, in the order of the samples.
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
    """Return the CRC-32 of a sample's parts in the order in which they are written: pictures by domain, label, condition."""
    return zlib.crc32(b''.join(parts))


def padded(size: int) -> int:
    """Return how many bytes a member of `size` bytes takes in a tar, with its header."""
    return tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))


def append_checksums(tar: tarfile.TarFile, first: int, sums: Iterable[int]) -> str:
    """Write the CRC-32s of the samples from number `first` on into `tar`, as its last member. Return the member's SHA-256."""
    text = ''.join(f'{sample_key(number)} {crc:08x}\n' for number, crc in enumerate(sums, first)).encode()
    info = tarfile.TarInfo(MEMBER)   # it depends neither on the writer nor on the day
    info.size, info.mode, info.uname, info.gname = len(text), 0o444, 'root', 'root'
    tar.addfile(info, io.BytesIO(text))
    return hashlib.sha256(text).hexdigest()


def parse_checksums(data: bytes, shard: Shard) -> dict[str, int]:
    """Return {key: CRC-32}. Raises ValueError unless these are the checksums that the manifest knows."""
    if hashlib.sha256(data).hexdigest() != shard.checksums:
        raise ValueError(f'its {MEMBER} are not those in the manifest: it is damaged, or of another dataset')
    return {key.decode(): int(crc, 16) for key, crc in map(bytes.split, data.splitlines())}
