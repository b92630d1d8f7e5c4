"""Each transform against an exact reference, its published strength and chance, and gradients of both orders."""

from math import pi, sqrt

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from imago.trainer.objectives.augment import ADA, DiffAugment, adapt_p, make_augment
from imago.trainer.objectives.augment.ada import GROUPS
from imago.trainer.objectives.augment.color import color_matrix, random_colors, recolor
from imago.trainer.objectives.augment.corruption import add_noise, cut_out, random_cutout
from imago.trainer.objectives.augment.diffaugment import POLICIES
from imago.trainer.objectives.augment.filters import HALF_BAND, filter_bands, octave_bands, random_gains
from imago.trainer.objectives.augment.geometry import (
    SYM6,
    move,
    random_affine,
    random_blit,
    resample,
    rotation,
    scaling,
    translation,
)

MANY = 20000
INSIDE = (..., slice(12, -12), slice(12, -12))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pictures(*shape, dtype=torch.float64):
    return torch.rand(shape or (2, 3, 16, 16), dtype=dtype) * 2 - 1


def waves(size=64):
    """A smooth picture, seen alike by any good resampling."""
    t = torch.linspace(0, 3, size, dtype=torch.float64)
    return (torch.sin(t) * torch.cos(0.7 * t)[:, None])[None, None]


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def nothing(count):
    return torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)


def share(mask):
    return mask.double().mean().item()


def changed(motions):
    return (motions != torch.eye(3)).flatten(1).any(dim=1)


# All

@pytest.mark.parametrize('shape', [(3, 3, 16, 16), (1, 1, 8, 8), (2, 3, 12, 20), (2, 1, 4, 6)])
@pytest.mark.parametrize('zero', [0.0, torch.tensor(0.0)])
def test_nothing_changes_at_p_0(shape, zero):
    images = pictures(*shape, dtype=torch.float32)
    assert ADA(GROUPS, shape[1], shape[2:])(images, zero).equal(images)


@pytest.mark.parametrize('shape', [(3, 3, 16, 16), (1, 1, 8, 8), (2, 3, 12, 20), (2, 1, 4, 6)])
def test_any_shape(shape):
    images = pictures(*shape, dtype=torch.float32)
    for augment in (ADA(GROUPS, shape[1], shape[2:]), DiffAugment(POLICIES)):
        augmented = augment(images, 1.0) if isinstance(augment, ADA) else augment(images)
        assert augmented.shape == images.shape and augmented.dtype == torch.float32
        assert augmented.isfinite().all() and not augmented.equal(images)


@pytest.mark.parametrize('augment', [*[(group,) for group in GROUPS], GROUPS, None])
def test_gradients_of_both_orders(augment):
    images = pictures(2, 3, 8, 8).requires_grad_()

    def augmented(images):
        torch.manual_seed(3)
        # a square, so that the second derivative is not 0
        return (DiffAugment(POLICIES)(images) if augment is None else ADA(augment, 3, (8, 8))(images, 1.0)).square()

    assert gradcheck(augmented, images, fast_mode=True)
    assert gradgradcheck(augmented, images, fast_mode=True)


def test_a_gradient_penalty_trains_through_it():
    weight = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    images = pictures(2, 3, 8, 8).requires_grad_()

    def penalty(weight):
        torch.manual_seed(0)
        logits = F.softplus(ADA(GROUPS, 3, (8, 8))(images, 0.8) * weight).sum()
        return torch.autograd.grad(logits, images, create_graph=True)[0].square().sum()

    assert gradcheck(penalty, weight, fast_mode=True)


def test_same_seed_same_pictures_and_samples_differ():
    images = pictures(1, 3, 16, 16).repeat(6, 1, 1, 1)
    augment = ADA(GROUPS, 3, (16, 16))
    torch.manual_seed(1)
    first, other = augment(images, 0.9), augment(images, 0.9)
    torch.manual_seed(1)
    assert augment(images, 0.9).equal(first) and not other.equal(first)
    assert all(not first[0].equal(sample) for sample in first[1:])


def test_groups_are_switched():
    images = pictures(16, 3, 8, 8)
    assert ADA((), 3, (8, 8))(images, 1.0).equal(images)
    blitted = ADA(('blit',), 3, (8, 8))(images, 1.0)
    assert torch.isin(blitted, images).all() and not blitted.equal(images)
    moved = ADA(('geometry',), 3, (8, 8))(images[:1].expand(300, -1, -1, -1), 0.3)
    copies = torch.isin(moved, images[:1]).flatten(1).all(dim=1)
    assert 0 < copies.sum() < 150 and (moved[copies] == images[:1]).all()
    cut = ADA(('cutout',), 3, (8, 8))(images, 1.0)
    assert ((cut == images) | (cut == 0)).all() and not cut.equal(images)


def test_refusals_say_what_to_take():
    with pytest.raises(ValueError, match="'colour' is unknown: take some of blit"):
        ADA(['colour'], 3, (8, 8))
    with pytest.raises(ValueError, match="'colour' is unknown: take some of blit"):
        ADA(['color'], 3, (8, 8), {'colour': 0.5})
    with pytest.raises(ValueError, match='1 or 3 channels, not 4'):
        ADA(['color'], 4, (8, 8))
    with pytest.raises(ValueError, match="'flip' is unknown: take some of color"):
        DiffAugment(['flip'])
    with pytest.raises(ValueError, match="'more' is unknown: take one of none"):
        make_augment('more', (), {}, (), 3, (8, 8))


def test_the_registry():
    images = pictures(4, 3, 8, 8)
    assert make_augment('none', GROUPS, {}, tuple(POLICIES), 3, (8, 8))(images, 1.0).equal(images)
    direct = {'ada': lambda: ADA(GROUPS, 3, (8, 8))(images, 0.7), 'diffaugment': lambda: DiffAugment(POLICIES)(images)}
    for name, expect in direct.items():
        augment = make_augment(name, GROUPS, {}, tuple(POLICIES), 3, (8, 8))
        torch.manual_seed(1)
        expected = expect()
        torch.manual_seed(1)
        assert augment(images, 0.7).equal(expected)


# Blitting and geometry

def test_pictures_that_are_not_square_are_never_turned_on_their_side():
    rows = torch.arange(6.0)[:, None].expand(50, 1, 6, 10)
    blitted = ADA(('blit',), 1, (6, 10))(rows, 1.0)
    assert (blitted == blitted[..., :1]).all() and not blitted.equal(rows)


@pytest.mark.parametrize('turns', range(4))
def test_turns_are_exact(turns):
    images = pictures()
    assert move(images, rotation(numbers(turns, turns) * pi / 2)).equal(torch.rot90(images, turns, (2, 3)))


def test_flips_are_exact():
    images = pictures(2, 3, 6, 10)
    assert move(images, scaling(numbers(-1, 1), numbers(1, 1))).equal(torch.stack([images[0].flip(2), images[1]]))


def test_half_turns_of_other_shapes_are_exact():
    images = pictures(1, 3, 6, 10)
    assert move(images, rotation(numbers(pi))).equal(images.flip([2, 3]))


def test_whole_shifts_are_crops_of_the_reflected_picture():
    images = pictures(1, 3, 8, 8)
    moved = move(images, translation(numbers(3), numbers(-2)))      # what lies 3 to the right and 2 above comes in
    assert moved.equal(F.pad(images, [4] * 4, mode='reflect')[:, :, 2:10, 7:15])


def test_up_and_down_sampling_cancel():
    taps = numbers(*SYM6)
    for shift in range(6):
        assert (taps[2 * shift:] * taps[:12 - 2 * shift]).sum().item() == pytest.approx(float(shift == 0), abs=1e-11)
    images = pictures(2, 3, 8, 12)
    torch.testing.assert_close(resample(images, nothing(2)), images, rtol=0, atol=1e-10)


@pytest.mark.parametrize('motion', [
    scaling(numbers(0.6), numbers(1.7)), rotation(numbers(0.5)), translation(numbers(0.3), numbers(-99.9))])
def test_a_constant_picture_stays_so(motion):
    constant = torch.full([1, 1, 9, 9], 0.3, dtype=torch.float64)
    torch.testing.assert_close(resample(constant, motion), constant)


@pytest.mark.parametrize(('motion', 'expected'), [
    (rotation(numbers(pi / 2)), torch.rot90(waves(), 1, (2, 3))),
    (scaling(numbers(-1), numbers(1)), waves().flip(3)),
    (scaling(numbers(1 / 2), numbers(1 / 2)), F.interpolate(waves()[:, :, 16:48, 16:48], scale_factor=2, mode='bilinear')),
    (translation(numbers(7.25), numbers(0)), 0.75 * waves().roll(-7, 3) + 0.25 * waves().roll(-8, 3)),
])
def test_resampling_follows_the_motion(motion, expected):
    torch.testing.assert_close(resample(waves(), motion)[INSIDE], expected[INSIDE], rtol=0, atol=1e-3)


def test_a_picture_repeats_mirrored_without_end():
    images = pictures(1, 1, 8, 8)
    near, far = (resample(images, translation(numbers(shift), numbers(-shift))) for shift in (0.4, 0.4 + 14 * 50))
    torch.testing.assert_close(near, far)


def test_geometry_follows_blitting_in_one_motion():
    turn, shift = rotation(numbers(pi / 2)), translation(numbers(7.5), numbers(0))
    expected = resample(torch.rot90(waves(), 1, (2, 3)), shift)
    torch.testing.assert_close(move(waves(), turn, shift)[INSIDE], expected[INSIDE], rtol=0, atol=1e-3)


def test_samples_without_geometry_are_copies():
    images, shift = pictures(2, 3, 8, 8), translation(numbers(0, 0.5), numbers(0, 0))
    moved = move(images, rotation(numbers(pi / 2, 0)), shift)
    assert moved[0].equal(torch.rot90(images[0], 1, (1, 2))) and not torch.isin(moved[1], images[1]).all()


@pytest.mark.parametrize('p', [0.2, 0.7])
def test_motions_come_with_their_chance(p):
    images = torch.empty(MANY, 1, 64, 32)
    blit = random_blit(images, p)
    assert share(torch.linalg.det(blit) < 0) == pytest.approx(p / 2, abs=0.02)
    assert share(blit[:, 0, 1].abs() > 0.5) == pytest.approx(p / 2, abs=0.02)                  # 90 or 270 degrees
    # the chance that neither of two draws rounds to 0 pixels is left out
    assert share(blit[:, :2, 2].abs().sum(1) > 1e-3) == pytest.approx(p * (1 - 1 / 16 / 8), abs=0.02)
    assert blit[:, :2, 2].abs().amax() == 8 and blit[:, :2, 2].abs().flatten(1).gt(4.01).any(dim=1).any()
    affine = random_affine(images, p)
    assert share(changed(affine)) == pytest.approx(1 - (1 - p) ** 4, abs=0.02)                 # rotation counts once
    octaves = torch.linalg.det(affine).log2() / -2
    assert share(octaves.abs() > 1e-5) == pytest.approx(p, abs=0.02)


def test_motions_have_the_published_strength():
    images = torch.empty(MANY, 1, 64, 32)
    blit, affine = random_blit(images, 1.0), random_affine(images, 1.0)
    assert not random_blit(images, 1.0, quarter_turns=False)[:, 0, 1].abs().gt(1e-5).any()
    assert blit[:, 0, 1].abs().round().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (torch.linalg.det(affine).log2() / -2).std().item() == pytest.approx(0.2, abs=0.01)
    ratios = torch.linalg.svdvals(affine[:, :2, :2]).log2()
    assert ((ratios[:, 0] - ratios[:, 1]) / 2).square().mean().sqrt().item() == pytest.approx(0.2, abs=0.01)
    moved = -torch.linalg.solve(affine[:, :2, :2], affine[:, :2, 2:])[..., 0]
    torch.testing.assert_close(moved.std(0), torch.tensor([4.0, 8.0]), rtol=0.05, atol=0)


# Colour

def test_colours_alone():
    images, one, zero = pictures(1, 3, 4, 4), numbers(1), numbers(0)
    luma = images.mean(dim=1, keepdim=True)
    assert recolor(images, color_matrix(one, zero, zero, one), numbers(0.25)).equal(images + 0.25)
    close = torch.testing.assert_close
    close(recolor(images, color_matrix(numbers(1.5), zero, zero, one), zero), images * 1.5)
    close(recolor(images, color_matrix(one, one, zero, one), zero), images - 2 * luma)
    close(recolor(images, color_matrix(one, zero, zero, zero), zero), luma.expand_as(images))
    close(recolor(images, color_matrix(one, zero, zero, numbers(2)), zero), 2 * images - luma)
    turned = recolor(images, color_matrix(one, zero, numbers(0.7), one), zero)
    close(turned.mean(dim=1, keepdim=True), luma)
    close(turned.square().sum(1), images.square().sum(1))
    assert (turned - images).abs().max() > 0.1
    close(recolor(images, color_matrix(one, zero, numbers(2 * pi / 3), one), zero), images.roll(1, dims=1))


def test_grey_pictures_are_recoloured_as_colour_ones():
    grey = pictures(8, 1, 4, 4)
    matrix, brightness = random_colors(grey, 1.0)
    coloured = recolor(grey.expand(-1, 3, -1, -1), matrix, brightness)
    torch.testing.assert_close(recolor(grey, matrix, brightness).expand_as(coloured), coloured)


def test_colours_have_their_chance_and_strength():
    images = torch.empty(MANY, 3, 1, 1)
    matrix, brightness = random_colors(images, 0.3)
    assert share(brightness != 0) == pytest.approx(0.3, abs=0.02)
    grey = matrix.sum(dim=(1, 2)) / 3                            # contrast, and the luma flip's sign
    assert share(grey < 0) == pytest.approx(0.15, abs=0.02)
    assert share((grey.abs() - 1).abs() > 1e-5) == pytest.approx(0.3, abs=0.02)
    matrix, brightness = random_colors(images, 1.0)
    assert brightness.std().item() == pytest.approx(0.2, abs=0.01)
    grey = (matrix.sum(dim=(1, 2)) / 3).abs()
    assert grey.log2().std().item() == pytest.approx(0.5, abs=0.02)
    chroma = matrix @ torch.tensor([1.0, -1.0, 0.0]) / grey[:, None]
    assert (chroma.norm(dim=1) / sqrt(2)).log2().std().item() == pytest.approx(1, abs=0.03)
    angle = torch.atan2(chroma @ torch.tensor([1.0, 1.0, -2.0]) / sqrt(6), chroma @ torch.tensor([1.0, -1.0, 0.0]) / sqrt(2))
    assert angle.mean().item() == pytest.approx(0, abs=0.05) and angle.std().item() == pytest.approx(pi / sqrt(3), abs=0.05)


# Filters, noise and cutout

def test_bands_of_the_wavelet():
    low = numbers(1 + sqrt(3), 3 + sqrt(3), 3 - sqrt(3), 1 - sqrt(3)) / (4 * sqrt(2))
    halves = F.conv1d(F.pad(low, [3, 3])[None, None], low[None, None])[0, 0] / 2
    torch.testing.assert_close(halves, numbers(*HALF_BAND))
    bands = octave_bands()
    identity = torch.zeros(43, dtype=torch.float64)
    identity[21] = 1
    assert bands.sum(0).equal(identity) and bands.equal(bands.flip(1))
    response = torch.fft.rfft(bands, 1024).abs()        # [4, 513], of frequencies 0 ... pi
    for band, centre in enumerate((0, 96, 192, 512)):
        assert response[band, centre] > 0.7 and response[:, centre].argmax() == band
    images = pictures(2, 3, 8, 8)
    assert filter_bands(images, torch.ones(2, 4).double()).equal(images)
    # and all but exactly so where the shortcut for it is not taken
    torch.testing.assert_close(filter_bands(images, torch.ones(2, 4).double() + 1e-12), images, rtol=0, atol=1e-9)


def test_gains_act_on_their_own_band():
    constant = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    checkers = constant * (torch.arange(32) % 2 * 2 - 1)        # of columns
    gains = numbers(0.5, 3, 5, 2)[None]
    torch.testing.assert_close(filter_bands(constant, gains), constant * 0.5 ** 2)
    torch.testing.assert_close(filter_bands(checkers, gains)[..., 21:-21], checkers[..., 21:-21] * 2 * 0.5)


def test_gains_have_their_chance_and_keep_the_power():
    gains = random_gains(torch.empty(MANY, 3, 1, 1), 0.3)
    assert share((gains != 1).any(1)) == pytest.approx(1 - 0.7 ** 4, abs=0.02)
    alone = gains[(gains != 1).any(1)]
    alone = alone[(alone[:, 1:] - alone[:, 1:2]).abs().amax(1) < 1e-6]       # only the lowest band's turn
    torch.testing.assert_close(alone.square() @ (torch.tensor([10.0, 1, 1, 1]) / 13), torch.ones(len(alone)))
    assert (alone[:, 0] / alone[:, 1]).log2().std().item() == pytest.approx(1, abs=0.05)


def test_noise():
    noise = add_noise(torch.zeros(4000, 3, 8, 8), 0.4).flatten(1).std(1)
    assert share(noise > 0) == pytest.approx(0.4, abs=0.03)
    assert noise[noise > 0].square().mean().sqrt().item() == pytest.approx(0.1, abs=0.005)


def test_cutout():
    images = torch.ones(1, 2, 8, 16)
    expected = images.clone()
    expected[:, :, 2:6, 0:6] = 0
    assert cut_out(images, torch.tensor([0.125]), torch.tensor([0.5])).equal(expected)
    cut = random_cutout(torch.ones(4000, 1, 16, 16), 0.3)
    holes = (cut == 0).flatten(1).double().mean(1)
    assert share(holes > 0) == pytest.approx(0.3, abs=0.03) and holes.max() == 0.25
    # a side keeps at least half of its hole, and 7/8 of it on average
    holes = holes[holes > 0]
    assert holes.mean().item() == pytest.approx(0.25 * (7 / 8) ** 2, abs=0.01) and holes.min() >= 1 / 16


# The adaptive p

def test_p_follows_the_sign():
    p = torch.tensor(0.0)
    for _ in range(100):
        p = adapt_p(p, torch.tensor(0.7), images=256)
    assert p.item() == pytest.approx(100 * 256 / 500_000, rel=1e-4)
    assert adapt_p(p, torch.tensor(0.5), images=256) < p
    assert adapt_p(p, torch.tensor(0.7), 256, target=0.8) < p
    assert adapt_p(p, torch.tensor(0.6), images=256, target=torch.tensor(0.6)).equal(p)
    assert adapt_p(torch.tensor(0.001), torch.tensor(-1.0), images=1000) == 0
    assert adapt_p(torch.tensor(0.9), torch.tensor(1.0), images=1000, speed_kimg=5) == 1
