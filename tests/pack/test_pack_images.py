"""`imago pack`: each kind of file comes out with its colours, upright, at the right size."""

import json

import numpy as np
import pytest
from packs_for_tests import manifest_of, run, samples, save
from PIL import Image, ImageCms

RED, GREEN, BLUE, WHITE = (200, 40, 40), (40, 200, 40), (40, 40, 200), (255, 255, 255)


def grey(dtype: type, value: float) -> Image.Image:
    return Image.fromarray(np.full((24, 24), value, dtype))


def palette(transparent: bool) -> tuple[Image.Image, dict]:
    image = Image.new('P', (24, 24), 1)
    image.putpalette([0, 0, 0, *RED])
    return image, {'transparency': 1} if transparent else {}


def odd_profile() -> bytes:
    """sRGB with another name, and the primaries red and green exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for old, new in ((b'rXYZ', b'#XYZ'), (b'gXYZ', b'rXYZ'), (b'#XYZ', b'gXYZ')):
        profile = profile.replace(old, new)
    return profile.replace('sRGB'.encode('utf-16-be'), 'odd!'.encode('utf-16-be'))


MODES = {  # name of the file -> (image or (image, how to save it), expected colour)
    'rgb.png': (Image.new('RGB', (24, 24), RED), RED),
    'rgba.png': (Image.new('RGBA', (24, 24), (*RED, 0)), BLUE),
    'rgba half.png': (Image.new('RGBA', (24, 24), (*RED, 128)), (120, 40, 120)),
    'rgba.webp': ((Image.new('RGBA', (24, 24), (*RED, 0)), {'lossless': True}), BLUE),
    'la.png': (Image.new('LA', (24, 24), (90, 0)), BLUE),
    'palette.png': (palette(False), RED), 'palette transparent.gif': (palette(True), BLUE),
    'rgb transparent.png': ((Image.new('RGB', (24, 24), RED), {'transparency': RED}), BLUE),
    'grey.png': (Image.new('L', (24, 24), 90), (90,) * 3), 'bit.png': (Image.new('1', (24, 24), 1), WHITE),
    'grey 16.png': (grey(np.uint16, 90 * 257), (90,) * 3),
    'grey 16 transparent.png': ((grey(np.uint16, 700), {'transparency': 700}), BLUE),
    'grey 16.pgm': (grey(np.uint16, 90 * 257), (90,) * 3), 'grey 32.tiff': (grey(np.int32, 90 * 257), (90,) * 3),
    'float.tiff': (grey(np.float32, 90 / 255), (90,) * 3),
    'cmyk.tiff': (Image.new('CMYK', (24, 24), (55, 215, 215, 0)), RED),
    'profile.png': ((Image.new('RGB', (24, 24), RED), {'icc_profile': odd_profile()}), GREEN),
    'broken profile.png': ((Image.new('RGB', (24, 24), RED), {'icc_profile': b'nonsense'}), RED),
}


@pytest.fixture(scope='module')
def modes(tmp_path_factory):
    root = tmp_path_factory.mktemp('modes')
    for name, (image, _) in MODES.items():
        image, options = image if isinstance(image, tuple) else (image, {})
        save(image, root / 'in' / name.replace('.', '_') / name, **options)
    assert run(root / 'in', root / 'out', '--encoding', 'png', '--background', 'rgb(40,40,200)', '--strict') == 0
    names = manifest_of(root / 'out').class_names
    return {names[sample['cls']]: sample['png'] for sample in samples(root / 'out')}


@pytest.mark.parametrize('name', MODES)
def test_colour_of_each_kind_of_file(modes, name):
    pixels = modes[name.replace('.', '_')]
    assert pixels.shape == (24, 24, 3) and np.abs(pixels.astype(int) - MODES[name][1]).max() <= 1


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tiff'])
def test_exif_orientation(tmp_path, orientation, suffix):
    """What is stored is the inverse of the turn that the tag asks for: numpy's, written down from the EXIF standard."""
    stored = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
              5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
              8: lambda a: np.rot90(a, -1)}[orientation]
    upright = np.kron(np.array([[RED, GREEN, BLUE], [WHITE, RED, RED]], np.uint8), np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(upright)))
    save(image, tmp_path / 'in' / f'a.{suffix}', exif=exif, quality=100)
    assert run(tmp_path / 'in', tmp_path / 'out', '--encoding', 'png', '--workers', 1) == 0
    shown = samples(tmp_path / 'out')[0]['png']
    assert shown.shape == upright.shape == (*manifest_of(tmp_path / 'out').resolution, 3)
    assert np.abs(shown[8::16, 8::16].astype(int) - upright[8::16, 8::16]).max() < 12


@pytest.mark.parametrize('fit, corner, left', [('crop', GREEN, GREEN), ('pad', WHITE, RED)])
def test_geometry(tmp_path, fit, corner, left):
    """20 x 120 pixels in thirds of red, green, red, to 16 x 32: crop keeps green only, pad adds rows."""
    thirds = np.array([[RED, GREEN, RED]], np.uint8).repeat(40, axis=1).repeat(20, axis=0)
    save(Image.fromarray(thirds), tmp_path / 'in' / 'a.png')
    assert run(tmp_path / 'in', tmp_path / 'out', '--encoding', 'png', '--resolution', '16x32', '--fit', fit) == 0
    pixels = samples(tmp_path / 'out')[0]['png'].astype(int)
    assert pixels.shape == (16, 32, 3)
    for place, colour in (((0, 0), corner), ((-1, -1), corner), ((8, 0), left), ((8, -1), left), ((8, 16), GREEN)):
        assert np.abs(pixels[place] - colour).max() <= 8
    assert json.loads((tmp_path / 'out' / 'report.json').read_text())['enlarged'] == 0
