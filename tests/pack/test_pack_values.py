"""`imago pack` gives all pictures of 16 bits one white, which it prints, and warns if they come out black."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from packs_for_tests import run, samples, save
from PIL import Image

GREY, COLOUR = 0, 2   # of PNG


def png16(pixels: np.ndarray) -> bytes:
    """[HW] or [HW3] of 16 bits; Pillow writes grey alone."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    about = struct.pack('>IIBBBBB', width, height, 16, COLOUR if pixels.ndim == 3 else GREY, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', about) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def ramp(largest: int) -> np.ndarray:
    return np.linspace(0, largest, 24 * 24).round().astype(np.uint16).reshape(24, 24)


def write(folder: Path, name: str, pixels: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    if name.endswith('png'):
        (folder / name).write_bytes(png16(pixels))
    else:
        save(Image.fromarray(pixels), folder / name)


def packed(tmp_path: Path, *options: object) -> list[np.ndarray]:
    assert run(tmp_path / 'in', tmp_path / 'out', '--encoding', 'png', '--channels', 1, *options) == 0
    return [sample['png'][..., 0] for sample in samples(tmp_path / 'out')]


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.pgm'])
@pytest.mark.parametrize('white', ['4095', 'auto', None])
def test_twelve_bits_in_16(tmp_path, capsys, name, white):
    write(tmp_path / 'in', name, ramp(4095))
    pixels, = packed(tmp_path, *(('--white-level', white) if white else ()))
    output = capsys.readouterr()
    white = 4095 if white else 65535
    assert np.array_equal(pixels, np.round(ramp(4095) * (255 / white))) and pixels.max() == (255 if white == 4095 else 16)
    assert f'16 bits   1 pictures hold values from 0 to 4095; {white} is white\n' in output.out
    assert ('pack again with --white-level 4095\n' in output.err) == (white == 65535)
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['values'] == [0, 4095] and report['recipe']['white_level'] == white


def test_auto_is_one_white_for_all(tmp_path):
    for number, largest in enumerate((1000, 4000, 300)):
        write(tmp_path / 'in', f'{number}.png', ramp(largest))
    save(Image.new('L', (24, 24), 90), tmp_path / 'in' / 'eight bits.png')
    assert sorted(pixels.max() for pixels in packed(tmp_path, '--white-level', 'auto')) == [19, 62, 90, 249]


@pytest.mark.parametrize('largest, warned', [(8191, True), (8192, False), (65535, False), (200, True)])
def test_less_than_an_eighth_is_warned_of(tmp_path, capsys, largest, warned):
    write(tmp_path / 'in', 'a.png', ramp(largest))
    packed(tmp_path)
    assert ('less than an eighth' in capsys.readouterr().err) == warned


def test_a_narrow_range_that_no_white_level_widens(tmp_path, capsys):
    write(tmp_path / 'in', 'a.png', ramp(4000) + 40000)
    packed(tmp_path)
    error = capsys.readouterr().err
    assert 'less than an eighth' in error and '--white-level' not in error


@pytest.mark.parametrize('white, skipped', [('4095', True), ('65535', False)])
def test_values_above_white_are_not_clipped(tmp_path, white, skipped):
    write(tmp_path / 'in', 'a.png', ramp(4095))
    write(tmp_path / 'in', 'b.png', ramp(4096))
    packed(tmp_path, '--white-level', white)
    names = [entry['name'] for entry in json.loads((tmp_path / 'out' / 'report.json').read_text())['skipped']]
    assert names == (['b.png'] if skipped else [])


def test_colours_of_16_bits_are_measured_too(tmp_path, capsys):
    """Pillow reads their upper 8 bits alone: they cannot be widened, and it is said."""
    colours = np.stack([ramp(4095)] * 3, axis=-1)
    write(tmp_path / 'in', 'a.png', colours)
    packed(tmp_path)
    output = capsys.readouterr()
    assert 'hold values from 0 to 3855' in output.out and 'less than an eighth' in output.err
    assert '--white-level' not in output.err, 'it would be refused'
    assert run(tmp_path / 'in', tmp_path / 'none', '--white-level', 4095) == 2
    assert 'upper 8' in capsys.readouterr().err


def test_without_16_bits_nothing_is_said(tmp_path, capsys):
    save(Image.new('L', (24, 24), 90), tmp_path / 'in' / 'a.png')
    packed(tmp_path)
    assert '16 bits' not in capsys.readouterr().out
    assert run(tmp_path / 'in', tmp_path / 'again', '--white-level', 'auto') == 0
    assert run(tmp_path / 'in', tmp_path / 'more', '--white-level', 255) == 0 and 'no effect' in capsys.readouterr().out


def test_the_file_above_is_what_pillow_reads():
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png16(ramp(4095))))), ramp(4095))
