"""This module sorts the members of a source: pictures, texts that may hold labels, collections of pictures, and others."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imago.trainer.pack import heif
from imago.trainer.pack.members import Member, tidy

# Each suffix has a reader of Pillow. Formats that run programs (EPS) or have no signature (TGA) are left out.
FORMATS = {
    '.avif': 'AVIF', '.bmp': 'BMP', '.gif': 'GIF', '.jp2': 'JPEG2000', '.jfif': 'JPEG', '.jpe': 'JPEG', '.jpeg': 'JPEG',
    '.jpg': 'JPEG', '.pbm': 'PPM', '.pgm': 'PPM', '.png': 'PNG', '.pnm': 'PPM', '.ppm': 'PPM', '.tif': 'TIFF',
    '.tiff': 'TIFF', '.webp': 'WEBP',
}
REPLACED, OUTSIDE = 'of the same name as a later one', 'outside, by a .. in the name'
OTHER_SPLIT = 'pictures of other splits'
SIDECARS = {'.cls': 1 << 12, '.json': 1 << 24}   # suffixes of files beside a picture that may hold its label: most bytes
METADATA = ('metadata.csv', 'metadata.jsonl')    # tables of the pictures in a folder, as Hugging Face has them
# names of files that may hold many pictures each, or may describe such files
COLLECTION = re.compile(r'.*\.parquet|.*idx[13]-ubyte(\.gz)?|(data_batch_[1-5]|test_batch|train|test)(\.bin)?'
                        r'|batches\.meta(\.txt)?|meta|fine_label_names\.txt')


@dataclass
class Contents:
    """The members of a folder, zip, tar or collection, by their paths inside of it."""

    pictures: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, Member] = field(default_factory=dict)      # files that may hold labels, by path with suffix in lower case
    collections: dict[str, Path] = field(default_factory=dict)  # files whose names COLLECTION fits
    ignored: Counter = field(default_factory=Counter)
    members: int = 0
    heif: list[str] = field(default_factory=list)      # pictures that an extra would read
    elsewhere: list[str] = field(default_factory=list)    # pictures of other splits
    labels: dict[str, str | None] | None = None   # of the pictures of a collection, if it holds labels
    class_names: tuple[str, ...] = ()             # the names of the classes that such labels number

    def add(self, path: str, member: Member, why_not: str) -> None:
        self.members += 1
        pure = PurePosixPath(path)
        parts, suffix = pure.parts, pure.suffix.lower()
        if why_not:
            self.ignored[why_not] += 1
        elif '..' in parts:
            self.ignored[OUTSIDE] += 1
        elif any(part.startswith('.') or part == '__MACOSX' for part in parts):
            self.ignored['hidden'] += 1
        elif suffix in FORMATS or suffix in heif.SUFFIXES and heif.is_installed():
            if path in self.pictures:
                self.ignored[REPLACED] += 1  # the later one wins, as when they are extracted
            self.pictures[path] = member
        elif suffix in heif.SUFFIXES:
            self.ignored[f'{suffix} ({heif.HOW})'] += 1
            self.heif.append(path)
        else:
            self.ignored[suffix or 'no suffix'] += 1
            if suffix in SIDECARS or pure.name.lower() in METADATA:
                self.texts[tidy(path)[:-len(suffix)] + suffix] = member
            elif type(member) is Member and COLLECTION.fullmatch(pure.name):
                self.collections[path] = Path(member.container, member.name)

    def open_collection(self, path: str) -> Path:
        """Return the file of a collection, which is no member from now on: the pictures in it are added as members."""
        suffix = PurePosixPath(path).suffix.lower() or 'no suffix'
        self.members -= 1
        self.ignored[suffix] -= 1
        self.ignored += Counter()   # drops counts of 0
        return self.collections.pop(path)

    def add_held(self, path: str, member: Member, label: str | None) -> None:
        """Add a picture of a collection, and its label."""
        self.members += 1
        self.pictures[path] = member
        self.labels = self.labels or {}
        self.labels[path] = label

    def leave_out(self, paths: list[str]) -> None:
        """Count pictures of another split than the one that is packed among the others."""
        self.ignored[OTHER_SPLIT] += len(paths)
        self.elsewhere += paths
        for path in paths:
            del self.pictures[path]
