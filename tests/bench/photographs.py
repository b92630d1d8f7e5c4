"""Draw a folder of landscapes as a camera and its owner would leave it: what docs/first-run.md starts from.

    python tests/bench/photographs.py my-photos

The folder has 240 pictures in two sub-folders, `mountains` and `sea`, of many sizes: most are JPEG, some lie on their side and
say so in their EXIF, some are HEIC (with pillow-heif) or PNG with transparency, two are broken, and one file is no picture.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

try:
    import pillow_heif
    pillow_heif.register_heif_opener()
    HEIC = True
except ImportError:
    HEIC = False

KINDS, EACH, ON_ITS_SIDE = ('mountains', 'sea'), 120, 6     # 6: EXIF's orientation of a camera that was turned to the right
DAY, DUSK, GROUND = (0.35, 0.6, 0.95), (0.95, 0.5, 0.3), (0.16, 0.3, 0.2)


def landscape(kind: str, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a sky, a sun, and mountains or a sea before them: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    dusk, horizon = rng.random(), rng.uniform(0.5, 0.68)
    top = np.array(DAY) * (1 - 0.6 * dusk)
    low = (1 - dusk) * np.array((0.85, 0.92, 1.0)) + dusk * np.array(DUSK)
    sky = top + (low - top) * np.clip(y / horizon, 0, 1)[..., None]
    distance = np.hypot((x - rng.uniform(0.15, 0.85)) * width / height, y - rng.uniform(0.12, horizon))
    glow = np.exp(-distance / 0.12)[..., None]
    picture = np.clip(sky + glow * np.array((1.0, 0.85, 0.5)), 0, 1)
    if kind == 'sea':
        swell = 3 * np.sin(x * rng.uniform(6, 18))
        waves = 0.5 + 0.5 * np.sin(np.maximum(y - horizon, 0) ** 0.5 * rng.uniform(80, 130) + swell)
        water = (0.55 * low + 0.1) * np.array((0.5, 0.75, 0.95)) * (0.65 + 0.35 * waves[..., None])
        picture = np.where((y > horizon)[..., None], water, picture)
    else:
        for layer in range(3):
            ridge = horizon - 0.22 + 0.17 * layer
            for octave in range(5):
                ridge = ridge + 0.13 * 0.55 ** octave * np.sin(x * rng.uniform(3, 6) * 2 ** octave + rng.uniform(0, 6.3))
            tint = (1 - layer / 2.4) * low * 0.6 + layer / 2.4 * np.array(GROUND) * (1 - 0.6 * dusk)
            picture = np.where((y > ridge)[..., None], tint, picture)
    grain = rng.normal(0, 0.015, picture.shape)
    return (255 * np.clip(picture + grain, 0, 1)).astype(np.uint8)


def save(pixels: np.ndarray, stem: Path, number: int) -> None:
    """Write one picture in the format that its number chooses."""
    picture = Image.fromarray(pixels)
    if number % 10 == 3:
        exif = Image.Exif()
        exif[0x0112] = ON_ITS_SIDE
        picture.transpose(Image.Transpose.ROTATE_90).save(stem.with_suffix('.JPG'), quality=92, exif=exif)
    elif number % 10 == 6 and HEIC:
        picture.save(stem.with_suffix('.HEIC'), quality=80)
    elif number % 10 == 8:
        picture.putalpha(255)
        picture.save(stem.with_suffix('.png'))
    else:
        picture.save(stem.with_suffix('.jpg'), quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    out, rng = parser.parse_args().out, np.random.default_rng(2026)
    for kind in KINDS:
        (out / kind).mkdir(parents=True)
        for number in tqdm(range(EACH), desc=kind, disable=None):
            height, width = int(rng.integers(300, 640)), int(rng.integers(300, 900))
            save(landscape(kind, rng, height, width), out / kind / f'IMG_{number:04d}', number)
    content = io.BytesIO()
    Image.fromarray(landscape('sea', rng, 400, 600)).save(content, 'jpeg')
    (out / 'sea' / 'IMG_9001.jpg').write_bytes(content.getvalue()[:len(content.getvalue()) // 3])   # the card was pulled out
    (out / 'sea' / 'IMG_9002.jpg').write_bytes(b'\0' * 4000)
    (out / 'notes.txt').write_text('Iceland, and the Alps\n')


if __name__ == '__main__':
    main()
