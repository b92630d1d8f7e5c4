"""This module has all sections of the configuration but the networks'. A weight of 0 leaves a penalty out."""

import sys
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag

from imago.trainer.config.losses import known_loss
from imago.trainer.config.schema import (
    FIXED,
    Beta,
    Count,
    Folder,
    Images,
    Kimg,
    Location,
    Minutes,
    Number,
    PathName,
    Pixels,
    Positive,
    PositiveShare,
    Resolution,
    Section,
    Share,
    Size,
    Start,
    Weight,
    Within,
)


class Ramp(Section):
    """A ramp goes from `start` to `end` along half a cosine, over the first `kimg` thousand images."""

    start: Weight
    end: Weight
    kimg: Kimg


def _kind(value: object) -> str:
    return 'ramp' if isinstance(value, (dict, Ramp)) else 'number'


Rate = Annotated[Annotated[Positive, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]
RampedWeight = Annotated[Annotated[Weight, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]
RampedShare = Annotated[Annotated[Share, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]


CONTINUOUS = 'continuous'
Conditional = Annotated[Annotated[bool, Tag('classes')] | Annotated[Literal['continuous'], Tag(CONTINUOUS)],
                        Discriminator(lambda value: CONTINUOUS if value == CONTINUOUS else 'classes')]


class DataConfig(Section):
    path: Location = Field(repr=False)            # folder, http(s)://, gs://, hf:// or pipe: with {} for the file name
    path_b: Location | None = Field(None, repr=False)   # pictures of domain b; those of `path` are then domain a
    resolution: Annotated[Resolution | None, FIXED] = None   # (height, width) of the networks; None: of the crop, or as packed
    crop: Annotated[Size | None, FIXED] = None    # (height, width) of the random part of each picture that is shown
    conditional: Annotated[Conditional, FIXED] = False   # train on the dataset's classes; continuous: on its packed vectors
    lanes: Annotated[Images | None, FIXED] = None   # runs of pictures that are read side by side; None: a new run takes what fits
    flip: Annotated[bool, FIXED] = False          # horizontal flips, at random
    changed: Literal['refuse', 'accept'] = 'refuse'   # a dataset that grew or changed since the run's last checkpoint
    workers: Annotated[int, Within(0, 1024)] = 2                   # decoding processes per rank
    cache_dir: Folder | None = None               # for remote shards; None: the user's cache folder
    cache_gb: Positive = 20.0

    def size(self, packed: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return the networks' (height, width) in px for pictures packed at `packed`; None if nothing determines it."""
        return self.resolution or self.crop or packed


class LossConfig(Section):
    name: Annotated[str, AfterValidator(known_loss)] = 'nonsaturating'
    d_steps: Count = 1                            # D takes so many steps for each one of G
    auxiliary: Annotated[Weight, FIXED] = 0.0     # weight of a classifier in D that replaces its conditioning
    # G's step goes on from the fakes of D's. StyleGAN2 at 64 px then takes 0.92 of the time a step on two cores, as G has one
    # forward pass less, and D's step keeps what G's gradient needs. Published steps draw new fakes for G.
    reuse_fakes: bool = False


class RegularizerConfig(Section):
    d_interval: Count = 1                         # steps between D's gradient penalties; 1: they join D's main phase
    g_interval: Count = 4                         # steps between path length penalties
    r1: RampedWeight = 0.0                       # gamma of gamma / 2 |grad D(real)|^2
    r2: RampedWeight = 0.0                       # the same for D(fake)
    wgan_gp: Weight = 0.0
    dragan: Weight = 0.0
    drift: Weight = 0.0
    lecam: Weight = 0.0
    lecam_decay: Beta = 0.99                      # per step, of the moving means of D's logits, corrected for their start at 0
    weight_clip: Weight = 0.0                     # D's weights stay in [-x, x]
    path_length: Weight = 0.0
    path_length_decay: PositiveShare = 0.01
    path_length_shrink: Images = 2                # the penalty takes the batch divided by this
    orthogonal: Weight = 0.0                      # on G, as in the paper; BigGAN-PyTorch's code has half this gradient
    orthogonal_form: Literal['relaxed', 'plain'] = 'relaxed'
    normalise: Annotated[Literal['none', 'spectral', 'stable_rank'], FIXED] = 'none'   # how D's weights are normalised
    normalise_g: Annotated[bool, FIXED] = False   # G's weights are normalised alike
    stable_rank: PositiveShare = 0.7              # wanted stable rank, as a share of the full rank


class OptimConfig(Section):
    g_lr: Rate = 0.002
    d_lr: Rate = 0.002
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    beta2_ramp: Ramp | None = None                # replaces the second beta
    eps: Positive = 1e-8


class PrecisionConfig(Section):
    """This section says how an NVIDIA GPU computes; on CPUs it changes nothing. See `set_precision`.

    network.low_precision says which blocks compute in bf16 or fp16.
    """

    tf32: bool = False                            # float32 convolutions in TF32; matrix products, logits and losses stay float32
    cudnn_benchmark: bool = False                 # time the ways to convolve, take the fastest: perhaps another at each start
    deterministic: bool = True                    # cuDNN adds in the same order each time, so that resume is exact


class EMAConfig(Section):
    half_life_kimg: Rate = 10.0
    rampup: Positive | None = None                # the half-life is at most this share of the images shown; None: no limit
    start_kimg: Start = 0.0                       # until then the average is the network itself
    w_avg_beta: Beta = 0.998


AugmentGroup = Literal['blit', 'geometry', 'color', 'filter', 'noise', 'cutout']


class AugmentConfig(Section):
    name: Literal['none', 'ada', 'diffaugment'] = 'none'
    groups: tuple[AugmentGroup, ...] = ('blit', 'geometry', 'color')
    factors: dict[AugmentGroup, Share] = {}       # ADA applies a group's transforms with chance p times its factor; default: 1
    policies: tuple[Literal['color', 'translation', 'cutout'], ...] = ('color', 'translation', 'cutout')  # DiffAugment's
    p: RampedShare | None = None                  # None: ADA adapts it to `target`
    target: Share = 0.6                           # mean sign of D(real) to reach
    speed_kimg: Kimg = 500.0                      # p needs so long from 0 to 1
    interval: Count = 4                           # steps between adjustments of p


BySide = dict[Pixels, Images]


class GrowthConfig(Section):
    """The keys of maps are the stage's shorter side in px. A stage that is missing has the value from outside of this section."""

    start_resolution: Annotated[Pixels, FIXED] = 8   # px, of the shorter side
    fade_kimg: Annotated[Kimg, FIXED] = 600.0
    stage_kimg: Annotated[Kimg, FIXED] = 600.0
    batch: Annotated[BySide, FIXED] = {}
    micro_batch: BySide = {}
    g_lr: dict[Pixels, Positive] = {}
    d_lr: dict[Pixels, Positive] = {}
    # D's gradient penalties are taken at the stage's pictures. `full`, as published, first enlarges these to full size, and D
    # averages them down: |grad D|^2 is then 4**floor(lod) times smaller, so R1 is weaker and slopes are drawn to 2**floor(lod).
    penalty_at: Annotated[Literal['stage', 'full'], FIXED] = 'stage'
    restart: Annotated[Literal['start', 'both'], FIXED] = 'start'   # Adam's moments reset as a fade starts; both: as it ends too


class ParallelConfig(Section):
    """This section says how networks, gradients and optimizers are spread over the ranks."""

    strategy: Literal['data', 'fsdp', 'zero'] = 'data'   # networks are whole on each rank; in parts; only moments are in parts
    replicas: Count = 1                           # fsdp keeps so many sets of parts, say one per node; it divides the ranks
    stage: Annotated[int, Within(1, 3)] = 1                        # ZeRO's; only 1 works with gradient penalties
    timeout_minutes: Minutes = 10.0    # a rank that keeps the others waiting for so long is named, and all end


Metric = Literal['fid', 'kid', 'is', 'precision', 'recall', 'density', 'coverage', 'ppl', 'intra_fid']


class CheckpointConfig(Section):
    interval_kimg: Kimg = 200.0
    interval_minutes: Minutes | None = 30.0       # since the last one; a grid of fakes comes with it
    keep: Count = 3
    best: Metric | None = None                    # the checkpoint with the best score of this metric is kept too


Pictures = Annotated[int, Within(10, 10_000_000)]    # the features of each are kept in memory
PicturesOrAll = Annotated[Annotated[Pictures, Tag('number')] | Annotated[Literal['all'], Tag('all')],
                       Discriminator(lambda value: 'all' if value == 'all' else 'number')]


class EvaluateConfig(Section):
    """This section says by which metrics pictures are scored, from which features, and on how many pictures."""

    interval_kimg: Kimg | None = None             # None: not while training
    metrics: tuple[Metric, ...] = Field(('fid', 'kid'), min_length=1)
    images: Pictures | None = None                # fakes; None: as many as published scores take, on a CPU a tenth
    reals: PicturesOrAll = 50000                  # at most so many, drawn from the dataset by `seed`; or `all`
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    psi: Annotated[float, Within(-100, 100)] = 1.0
    psi_cutoff: Annotated[int, Within(0, 1000)] | None = None      # layers, from the first on, in which psi truncates; None: all
    truncation: Annotated[float, Within(0.01, 100)] | None = None     # latents are drawn again until |z| is below it
    noise: Literal['random', 'const'] = 'random'  # each picture gets its own noise, or all get the constant map
    resizer: Literal['clean', 'legacy'] = 'clean'
    extractor: PathName = 'auto'                  # inception, effnet_lite0, or a TorchScript or ONNX file with these inputs:
    extractor_size: Pixels = 224                  # px
    extractor_mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406)   # of values from 0 to 1
    extractor_std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    extractor_sha256: Annotated[str, Field(pattern='^[0-9a-f]{64}$')] | None = None   # the weights must have it

    @property
    def most_reals(self) -> int:
        return sys.maxsize if self.reals == 'all' else self.reals


class LogConfig(Section):
    interval_kimg: Kimg = 4.0
    grid_kimg: Kimg = 200.0
    grid: tuple[Annotated[int, Within(1, 64)], Annotated[int, Within(1, 64)]] = (4, 8)   # rows, columns
    keys: bool = False                            # write the sample keys of each step, for audits
    singular_values: bool = False                 # report the top three of each layer


IndicatorName = Literal['real_sign', 'overfitting', 'loss_ratio', 'diversity', 'class_diversity', 'duplicates',
                        'class_duplicates', 'gradient_norm', 'gradient_peak', 'spectral_growth', 'near_overflow']
INDICATOR_NAMES = get_args(IndicatorName)


class GuardConfig(Section):
    """The guard watches for collapse and overfitting with each report. Its indicators are in trainer/watch/indicators.py."""

    action: Literal['off', 'warn', 'stop', 'rollback'] = 'warn'
    start_kimg: Start | None = None               # no alarm before; None: four half-lives of the EMA
    patience: Count = 3                           # so many bad reports in a row raise an alarm
    pictures: Annotated[int, Within(16, 10_000)] = 64              # fakes per report, and as many reals
    data: Location | None = Field(None, repr=False)   # packed pictures that are not trained on, to see D overfit
    thresholds: dict[IndicatorName, Number] = {}     # replace the usual ones
    lr_factor: Annotated[Beta, Field(gt=0)] = 0.5   # each rollback multiplies both learning rates by it
    rollbacks: Count = 3                          # after so many the run is stopped
