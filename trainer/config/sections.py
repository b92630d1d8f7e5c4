"""The sections of the configuration but for the networks'. Weights of 0 leave a penalty out."""

import sys
from typing import Annotated, Literal, get_args

from pydantic import Discriminator, Field, Tag

from imago.trainer.config.losses import LOSS_FACTS
from imago.trainer.config.schema import (
    FIXED,
    Beta,
    Count,
    Folder,
    Images,
    Kimg,
    Location,
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
    real,
    whole,
)


class Ramp(Section):
    """From `start` to `end` along half a cosine, over the first `kimg`."""

    start: Weight
    end: Weight
    kimg: Kimg


def _kind(value: object) -> str:
    return 'ramp' if isinstance(value, (dict, Ramp)) else 'number'


Rate = Annotated[Annotated[Positive, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]
RampedWeight = Annotated[Annotated[Weight, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]
RampedShare = Annotated[Annotated[Share, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]


CONTINUOUS = 'continuous'
Conditional = Annotated[Annotated[bool, Tag('classes')] | Annotated[Literal[CONTINUOUS], Tag(CONTINUOUS)],
                        Discriminator(lambda value: CONTINUOUS if value == CONTINUOUS else 'classes')]


class DataConfig(Section):
    path: Location = Field(repr=False)            # folder, http(s)://, gs://, hf:// or pipe: with {} for the file name
    path_b: Location | None = Field(None, repr=False)   # of pictures of domain b, shown beside those of `path`, which are of a
    resolution: Annotated[Resolution | None, FIXED] = None   # (height, width) of the networks; None: the crop's, or as packed
    crop: Annotated[Size | None, FIXED] = None    # (height, width) of the part that is shown of each picture, at random places
    conditional: Annotated[Conditional, FIXED] = False   # train on the dataset's classes; continuous: on the vectors packed with it
    lanes: Annotated[Images, FIXED] = 64          # a multiple of every number of ranks the run will ever have
    flip: Annotated[bool, FIXED] = False          # horizontal flips, at random
    workers: whole(0, 1024) = 2                   # decoding processes per rank
    cache_dir: Folder | None = None               # for remote shards; None: the user's cache folder
    cache_gb: Positive = 20.0

    def size(self, packed: tuple[int, int] | None) -> tuple[int, int] | None:
        """(height, width) in px that the networks have, for pictures packed at `packed`; None where nothing tells."""
        return self.resolution or self.crop or packed


class LossConfig(Section):
    name: Literal[*LOSS_FACTS] = 'nonsaturating'
    d_steps: Count = 1                            # steps of D for one of G
    auxiliary: Annotated[Weight, FIXED] = 0.0     # of a classifier beside D's logit, in place of its conditioning


class RegularizerConfig(Section):
    d_interval: Count = 1                         # steps between D's gradient penalties; 1: in D's main phase
    g_interval: Count = 4                         # steps between path length penalties
    r1: RampedWeight = 0.0                       # gamma of gamma / 2 |grad D(real)|^2
    r2: RampedWeight = 0.0                       # the same at fakes
    wgan_gp: Weight = 0.0
    dragan: Weight = 0.0
    drift: Weight = 0.0
    lecam: Weight = 0.0
    lecam_decay: Beta = 0.99                      # a step, of the means of the logits, which are corrected for their start at 0
    weight_clip: Weight = 0.0                     # D's weights stay in [-x, x]
    path_length: Weight = 0.0
    path_length_decay: PositiveShare = 0.01
    path_length_shrink: Images = 2                # of the batch
    orthogonal: Weight = 0.0                      # on G; as the paper has it: BigGAN-PyTorch's code takes half this gradient
    orthogonal_form: Literal['relaxed', 'plain'] = 'relaxed'
    normalise: Annotated[Literal['none', 'spectral', 'stable_rank'], FIXED] = 'none'   # the weights of D ...
    normalise_g: Annotated[bool, FIXED] = False   # ... and of G
    stable_rank: PositiveShare = 0.7              # share of the full rank


class OptimConfig(Section):
    g_lr: Rate = 0.002
    d_lr: Rate = 0.002
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    beta2_ramp: Ramp | None = None                # in place of the second beta
    eps: Positive = 1e-8


class EMAConfig(Section):
    half_life_kimg: Rate = 10.0
    rampup: Positive | None = None                # half-life at most this share of the images shown; None: no ramp
    start_kimg: Start = 0.0                       # until then the average is the network itself
    w_avg_beta: Beta = 0.998


AugmentGroup = Literal['blit', 'geometry', 'color', 'filter', 'noise', 'cutout']


class AugmentConfig(Section):
    name: Literal['none', 'ada', 'diffaugment'] = 'none'
    groups: tuple[AugmentGroup, ...] = ('blit', 'geometry', 'color')
    factors: dict[AugmentGroup, Share] = {}       # of ADA: the chance of a group's transforms is p times its factor, else p
    policies: tuple[Literal['color', 'translation', 'cutout'], ...] = ('color', 'translation', 'cutout')  # of DiffAugment
    p: RampedShare | None = None                  # None: adapted to `target`
    target: Share = 0.6                           # mean sign of D(real)
    speed_kimg: Kimg = 500.0                      # to move p from 0 to 1
    interval: Count = 4                           # steps between adjustments


BySide = dict[Pixels, Images]


class GrowthConfig(Section):
    """Maps are by the stage's shorter side in px; what is missing is as outside of growth."""

    start_resolution: Annotated[Pixels, FIXED] = 8   # px, of the shorter side
    fade_kimg: Annotated[Kimg, FIXED] = 600.0
    stage_kimg: Annotated[Kimg, FIXED] = 600.0
    batch: Annotated[BySide, FIXED] = {}
    micro_batch: BySide = {}
    g_lr: dict[Pixels, Positive] = {}
    d_lr: dict[Pixels, Positive] = {}
    # Pictures that D's gradient penalties are taken at. full, as published: the stage's, enlarged to full size, which D
    # averages down again: |grad D|^2 is 4**floor(lod) times smaller, so R1 is weaker and slopes are drawn to 2**floor(lod).
    penalty_at: Annotated[Literal['stage', 'full'], FIXED] = 'stage'
    restart: Annotated[Literal['start', 'both'], FIXED] = 'start'   # Adam forgets its moments as a fade starts; both, as published: as it ends too


class ParallelConfig(Section):
    """How networks, gradients and optimizers are spread over the ranks."""

    strategy: Literal['data', 'fsdp', 'zero'] = 'data'   # whole on every rank; cut into parts; only moments in parts
    replicas: Count = 1                           # of fsdp: sets of parts, say one a node; divides the ranks
    stage: whole(1, 3) = 1                        # of zero; only 1 goes with penalties on gradients
    timeout_minutes: real(0.001, 1e5) = 10.0    # a rank that keeps the others waiting for so long is named, and all end


Metric = Literal['fid', 'kid', 'is', 'precision', 'recall', 'density', 'coverage', 'ppl', 'intra_fid']


class CheckpointConfig(Section):
    interval_kimg: Kimg = 200.0
    keep: Count = 3
    best: Metric | None = None                    # kept as well: the checkpoint with the best score of this metric


Pictures = whole(10, 10_000_000)    # the features of each are kept in memory
PicturesOrAll = Annotated[Annotated[Pictures, Tag('number')] | Annotated[Literal['all'], Tag('all')],
                       Discriminator(lambda value: 'all' if value == 'all' else 'number')]


class EvaluateConfig(Section):
    """How good the pictures are: which metrics, from which features, of how many pictures."""

    interval_kimg: Kimg | None = None             # None: not while training
    metrics: tuple[Metric, ...] = Field(('fid', 'kid'), min_length=1)
    images: Pictures = 50000                      # fakes
    reals: PicturesOrAll = 50000                  # at most, drawn from the dataset by `seed`; or `all`
    seed: whole(0, 2**32 - 1) = 0
    psi: real(-100, 100) = 1.0
    psi_cutoff: whole(0, 1000) | None = None      # layers, from the first on, in which psi truncates; None: all
    truncation: real(0.01, 100) | None = None     # latents are drawn again until |z| is below
    noise: Literal['random', 'const'] = 'random'  # of layers that add it: each picture has its own, or all the constant map
    resizer: Literal['clean', 'legacy'] = 'clean'
    extractor: PathName = 'auto'                  # inception, effnet_lite0, or a TorchScript or ONNX file, which takes:
    extractor_size: Pixels = 224                  # px
    extractor_mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406)   # of values from 0 to 1
    extractor_std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    extractor_sha256: Annotated[str, Field(pattern='^[0-9a-f]{64}$')] | None = None   # that the weights must have

    @property
    def most_reals(self) -> int:
        return sys.maxsize if self.reals == 'all' else self.reals


class LogConfig(Section):
    interval_kimg: Kimg = 4.0
    grid_kimg: Kimg = 200.0
    grid: tuple[whole(1, 64), whole(1, 64)] = (4, 8)   # rows, columns
    keys: bool = False                            # write the sample keys of each step, for audits
    singular_values: bool = False                 # the top three of each layer, with each report


SignalName = Literal['real_sign', 'overfitting', 'loss_ratio', 'diversity', 'class_diversity', 'duplicates',
                     'class_duplicates', 'gradient_norm', 'gradient_peak', 'spectral_growth', 'near_overflow']
SIGNAL_NAMES = get_args(SignalName)


class GuardConfig(Section):
    """Watches for collapse and overfitting, with each report. Signals and their thresholds: trainer/watch/alarms.py."""

    action: Literal['off', 'warn', 'stop', 'rollback'] = 'warn'
    start_kimg: Start | None = None               # no alarm before; None: four half-lives of the EMA
    patience: Count = 3                           # reports in a row
    pictures: whole(16, 10_000) = 64              # fakes, and as many reals
    data: Location | None = Field(None, repr=False)   # packed pictures that are not trained on, to see D overfit
    thresholds: dict[SignalName, Number] = {}     # in place of the usual ones
    lr_factor: Annotated[Beta, Field(gt=0)] = 0.5   # of both learning rates, with each rollback
    rollbacks: Count = 3                          # at most; then the run is stopped
