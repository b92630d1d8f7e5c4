"""These indicators show that a training goes wrong: what each tells, its threshold, and when it is worth a warning.

Sources are cited from memory; 'measured' means that `python tests/bench/guard.py` found the value, on emoji at 16 px.
"""

from dataclasses import dataclass

from imago.trainer.config.sections import INDICATOR_NAMES


@dataclass(frozen=True)
class Indicator:
    """`seen` explains the number to a person; `advice` is what people do about it."""

    threshold: float
    above: bool           # whether values above the threshold are bad; else those below it are
    source: str           # where the threshold comes from
    seen: str
    advice: str
    at_once: bool = False   # whether one bad report is enough for a warning

    def is_bad(self, value: float, threshold: float) -> bool:
        return value > threshold if self.above else value < threshold


MORE_DATA = 'augment more (augment.name=ada, or diffaugment), add data, or raise regularizers.r1'
SLOWER = 'lower optim.d_lr and optim.g_lr, raise regularizers.r1, or go back to an earlier checkpoint'

INDICATORS = {
    'real_sign': Indicator(
        0.96, True, 'Karras et al. 2020 (ADA), section 3.1: r_t, kept at 0.6 there; 98% of reals, as Brock et al. 2019, '
        'section 4.2 saw before collapse; measured: 0.95 at most when healthy, 1 of one picture',
        'D calls nearly all training pictures real: it knows them by heart, or is far ahead of G',
        f'{MORE_DATA}; if it came early, lower optim.d_lr'),
    'overfitting': Indicator(
        0.7, True, 'Karras et al. 2020 (ADA), equation 1: r_v, from 0 (none) to 1 (complete)',
        'D judges held-out pictures (guard.data) nearly as it judges fakes: it has learned the training set by heart',
        MORE_DATA),
    'loss_ratio': Indicator(
        30.0, True, '0.5 where neither wins, Goodfellow et al. 2014; measured: 10 at most when healthy, 50 with D rates x20',
        "G's loss over D's: D wins nearly every time, and what G hears from it is weak or arbitrary",
        'lower optim.d_lr, raise regularizers.r1, or loss.d_steps=1'),
    'diversity': Indicator(
        0.5, False, 'measured: 0.55 at least when healthy',
        'the mean distance between fakes over that between reals: G makes few kinds of pictures (mode collapse)',
        'go back to an earlier checkpoint, lower the learning rates, raise regularizers.r1, or enlarge the batch'),
    'class_diversity': Indicator(
        0.3, False, 'measured: 0.33 at least when healthy; 0.21 of a class of 4 pictures, 0.28 of 96, 0.25 without R1',
        'the same within the least diverse of the watched classes: G makes much the same picture for all of the class',
        'add pictures of that class, join it with another, or train without classes'),
    'duplicates': Indicator(
        0.5, True, 'a convention; measured: 0 when healthy',
        'this share of the fakes has a near copy among the others: G ignores its latents, or there is next to one picture',
        'look for duplicates in the data; else, as for a collapse, an earlier checkpoint, lower rates or a larger r1'),
    'class_duplicates': Indicator(
        0.6, True, 'a convention; measured: 0 when healthy',
        'the share of near copies within the worst of the watched classes: G knows only a few pictures of it by heart',
        'add pictures of that class, join it with another, or augment more'),
    'gradient_norm': Indicator(
        10.0, True, 'measured: 4 at most when healthy, 350 with D rates x20',
        'the gradient of a phase, over its median in the last reports: the game becomes unstable',
        SLOWER),
    'gradient_peak': Indicator(
        1000.0, True, 'a convention: three orders of magnitude',
        'the largest gradient of a single step, over the median: a near miss of infinity',
        f'{SLOWER}; with fp16, take bf16 or fewer network.low_precision_blocks', at_once=True),
    'spectral_growth': Indicator(
        3.0, True, 'Brock et al. 2019, section 4.1: a sudden rise comes with collapse; measured: 2 at most when healthy',
        "a layer's largest singular value, over its median in the last reports: it explodes, as before a collapse",
        SLOWER),
    'near_overflow': Indicator(
        0.25, True, "two doublings below float16's largest number",
        'the largest activation of an fp16 layer, over what fp16 can hold: the next ones may be infinite',
        'take network.low_precision=bf16, or fewer network.low_precision_blocks', at_once=True),
}
assert tuple(INDICATORS) == INDICATOR_NAMES


def warning(name: str, value: float, threshold: float, nimg: int, since: int) -> str:
    """Say in one line what is seen and what people do about it. `since` is the images shown when the indicator was last good."""
    indicator = INDICATORS[name]
    side = 'above' if indicator.above else 'below'
    return (f'{name} is {value:.3g}, {side} {threshold:g}, at {nimg / 1000:g} kimg, and was last '
            f'within at {since / 1000:g}: {indicator.seen}. What people do: {indicator.advice}')
