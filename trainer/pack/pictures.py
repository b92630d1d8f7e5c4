"""This module turns whatever picture a file holds into an upright one in 8-bit sRGB or grey, of one size, and encodes it."""

import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from imago.trainer.config.resolution import LONGEST_SIDE, SHORTEST_SIDE, largest_square
from imago.trainer.pack import heif
from imago.trainer.pack.contents import FORMATS
from imago.trainer.pack.members import Member

SUFFIXES = {'webp': 'webp', 'png': 'png', 'jpeg': 'jpg'}
MODES = {1: 'L', 3: 'RGB'}
SRGB = ImageCms.createProfile('sRGB')
Image.init()
READABLE = tuple(sorted(set(FORMATS.values()) & Image.OPEN.keys()))  # Pillow may be built without AVIF or JPEG 2000
MOST_BYTES_A_PIXEL = 16  # four channels of float32: no honest file has more
WHITEST = 65535          # the largest value of 16 bits


@dataclass(frozen=True)
class Limits:
    """How much memory a file may ask for. This is checked before it is decoded."""

    max_pixels: int

    @property
    def max_bytes(self) -> int:
        return self.max_pixels * MOST_BYTES_A_PIXEL


@dataclass(frozen=True)
class Recipe:
    """What is done with each picture. `size` is (height, width) in pixels; `fit` is crop, pad, or None to demand that size.

    Without a `size` each picture keeps its own size.
    """

    size: tuple[int, int] | None
    fit: str | None
    background: str     # a colour that Pillow knows: under transparency and around padded pictures
    channels: int
    encoding: str       # a key of SUFFIXES
    quality: int        # 1 to 100, of WebP and JPEG; for lossless WebP it is the effort
    lossless: bool
    limits: Limits
    white_level: int    # the value of files of 16 bits that becomes white


@dataclass(frozen=True)
class Encoded:
    data: bytes
    size: tuple[int, int]           # (height, width) in pixels
    enlarged: bool
    values: tuple[int, int] | None  # the smallest and the largest value in a file of 16 bits
    coarse: bool                    # whether only the upper 8 of the 16 bits were read


@dataclass(frozen=True)
class Skipped:
    name: str
    reason: str


def start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C reaches the whole group; the parent decides what follows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Image.MAX_IMAGE_PIXELS = None                  # Limits takes its place
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def prepare(picture: Member, recipe: Recipe) -> Encoded | Skipped:
    """Read, normalise, fit and encode a picture, or say why it is skipped. ValueError if it lacks the size of the others."""
    try:
        with _quiet():
            image, values = _decode(picture, recipe.limits)
            coarse = values is not None and not _is_grey(image)
            if coarse and recipe.white_level != WHITEST:
                raise ValueError(f'colour of 16 bits, of which only the upper 8 can be read; leave --white-level at {WHITEST}')
            image = to_colour(image, recipe.background, recipe.channels, recipe.white_level)
    except Exception as error:  # Pillow's readers raise nearly every kind on broken files
        return Skipped(picture.name, _reason(error))
    if recipe.size and recipe.fit is None and image.size[::-1] != recipe.size:
        raise ValueError(size_mismatch(picture.name, image.size[::-1], 'the others', recipe.size))
    try:
        image, enlarged = fit(image, recipe) if recipe.size else (check_sides(image), False)
    except ValueError as error:
        return Skipped(picture.name, str(error))
    return Encoded(_encode(image, recipe), image.size[::-1], enlarged, values, coarse)


def prepare_all(pictures: Sequence[Member], recipe: Recipe) -> tuple[Encoded, ...] | Skipped:
    """Prepare the pictures of a sample. The sample is skipped if one of them cannot be packed, or a pair has two sizes."""
    found = []
    for picture in pictures:
        result = prepare(picture, recipe)
        if isinstance(result, Skipped):
            return result
        found.append(result)
        if result.size != found[0].size:
            (height, width), (h, w) = result.size, found[0].size
            return Skipped(picture.name, f'{height}x{width} pixels, the other of its pair {h}x{w}; both must have one size')
    return tuple(found)


def open_upright(picture: Member, limits: Limits, background: str, channels: int) -> Image.Image:
    """Open a picture as L or RGB, turned as its EXIF says. Raises whatever Pillow raises on broken files."""
    return to_colour(_decode(picture, limits)[0], background, channels)


def largest_value(picture: Member, limits: Limits) -> int:
    """Return the largest value in a file of 16 bits, or 0 for another file and for one that cannot be packed."""
    try:
        with _quiet(), picture.open(limits.max_bytes) as file:
            if not _has_16_bits(_open(file, limits)):
                return 0
        with _quiet():
            least, largest = _decode(picture, limits)[1]
    except Exception:  # prepare() will say why
        return 0
    return largest if least >= 0 and largest <= WHITEST else 0


def upright_size(picture: Member, limits: Limits) -> tuple[int, int] | None:
    """Return (height, width) in pixels, read from the header alone, or None for a broken picture."""
    try:
        with _quiet(), picture.open(limits.max_bytes) as file:
            image = _open(file, limits)
            # Pillow turns a TIFF itself. PNG's getexif() would decode the pixels where no eXIf chunk precedes them.
            ask = {'TIFF': False, 'PNG': 'exif' in image.info}.get(image.format, True)
            turned = ask and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size if turned else image.size[::-1]
    except Exception:  # prepare() will say why
        return None


def size_mismatch(name: str, size: tuple[int, int], other: str, other_size: tuple[int, int]) -> str:
    (height, width), (h, w) = size, other_size
    common = largest_square(min(height, width, h, w))  # it enlarges neither, unless they are smaller than every network's size
    return (f'{name!r} is {height}x{width} pixels, {other} {h}x{w} (height x width); '
            f'bring all to one size, e.g. --resolution {common}')


def to_colour(image: Image.Image, background: str, channels: int, white_level: int = WHITEST) -> Image.Image:
    """Convert any of Pillow's modes to L (`channels` 1) or RGB (3) of 8 bits. ValueError for values without a defined white."""
    profile = image.info.get('icc_profile')
    if _is_grey(image) or image.mode == 'F':
        image = _to_8_bits(image, white_level)
    if image.has_transparency_data:
        image = image.convert('RGBA')
    elif image.mode not in ('L', 'RGB', 'CMYK'):
        image = image.convert('RGB')
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == 'RGBA':
        canvas = Image.new('RGB', image.size, background)
        canvas.paste(image, mask=image)
        image = canvas
    image = image.convert(MODES[channels])
    image.info.clear()  # else the encoder would store the old profile and orientation once more
    return image


def check_sides(image: Image.Image) -> Image.Image:
    """Return `image` itself. ValueError if it is smaller than every network's pictures, or larger than WebP can hold."""
    if min(image.size) < SHORTEST_SIDE or max(image.size) > LONGEST_SIDE:
        raise ValueError(f'{image.height}x{image.width} pixels, where each side must be {SHORTEST_SIDE} to {LONGEST_SIDE}')
    return image


def fit(image: Image.Image, recipe: Recipe) -> tuple[Image.Image, bool]:
    """Return the picture at `recipe.size`, and whether it was enlarged. ValueError if padding would leave nothing of it."""
    height, width = recipe.size
    scales = height / image.height, width / image.width
    if recipe.fit != 'pad':
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), max(scales) > 1
    if round(min(scales) * min(image.size)) < 1:
        raise ValueError(f'{image.height}x{image.width} pixels are too thin to be padded to {height}x{width}')
    return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, recipe.background), min(scales) > 1


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action='ignore')  # Pillow warns of odd metadata


def _open(file: BinaryIO, limits: Limits) -> Image.Image:
    formats = READABLE
    if heif.is_heif(file):
        heif.register()
        formats = (heif.FORMAT,)
    image = Image.open(file, formats=formats)
    if image.width * image.height > limits.max_pixels:
        raise ValueError(f'{image.height}x{image.width} pixels, more than --max-pixels {limits.max_pixels}')
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text holds a memory address
        return 'no picture in a known format'
    return ' '.join(str(error).split()) or type(error).__name__


def _decode(picture: Member, limits: Limits) -> tuple[Image.Image, tuple[int, int] | None]:
    """Return a picture in its own mode, turned as its EXIF says, and the smallest and largest value in a file of 16 bits."""
    with picture.open(limits.max_bytes) as file:
        image = _open(file, limits)
        measured = _has_16_bits(image)  # Pillow forgets this when it loads the pixels
        image = ImageOps.exif_transpose(image)
    if not measured:
        return image, None
    if _is_grey(image):
        pixels = np.asarray(image)
        return image, (int(pixels.min()), int(pixels.max()))
    bands = np.asarray(image.convert('RGB').getextrema())    # [bands, 2]
    return image, (int(bands.min()) * 257, int(bands.max()) * 257)


def _has_16_bits(image: Image.Image) -> bool:
    """Tell whether a file has more than 8 bits a value. Pillow keeps all of them in grey pictures, and the upper 8 in colour."""
    tiles = getattr(image, 'tile', [])    # only pictures of files have some
    codec, _, _, raw = tiles[0] if tiles else ('', None, None, ())
    raw = raw if isinstance(raw, tuple) else (raw,)
    return _is_grey(image) or any(';16' in str(part) for part in raw) or codec == 'ppm' and raw[-1] > 255


def _is_grey(image: Image.Image) -> bool:
    """Tell whether a picture is grey of 16 bits, which Pillow may also read as 32."""
    return image.mode.startswith('I')


def _to_8_bits(image: Image.Image, white_level: int) -> Image.Image:
    """Convert grey of 16 bits, or of floats in [0, 1], to 8 bits. Pillow itself would clip at 255."""
    white = 1 if image.mode == 'F' else white_level
    pixels = np.asarray(image)  # [HW]
    if not (pixels.min() >= 0 and pixels.max() <= white):
        raise ValueError(f'grey values from {pixels.min()} to {pixels.max()}, where 0 to {white} are expected')
    grey = Image.fromarray(np.round(pixels * (255 / white)).astype(np.uint8))
    if 'transparency' in image.info:  # PNG's tRNS names a value that means transparent
        grey.putalpha(Image.fromarray(np.where(pixels == image.info['transparency'], 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if 'sRGB' in ImageCms.getProfileDescription(source):
            return image
        return ImageCms.profileToProfile(image, source, SRGB, outputMode='RGBA' if image.mode == 'RGBA' else 'RGB')
    except (ImageCms.PyCMSError, OSError):
        return image  # a profile that is broken or for other channels says nothing about these pixels


def _encode(image: Image.Image, recipe: Recipe) -> bytes:
    options = {
        'webp': {'quality': recipe.quality, 'lossless': recipe.lossless, 'method': 4},
        'png': {'compress_level': 6},
        'jpeg': {'quality': recipe.quality, 'subsampling': 0},
    }[recipe.encoding]
    out = io.BytesIO()
    image.save(out, recipe.encoding, **options)
    return out.getvalue()
