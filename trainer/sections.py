"""The sections of the configuration but for the networks'. Weights of 0 leave a penalty out."""

from typing import Annotated, Literal, get_args

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

from trainer.schema import Beta, Folder, Location, Resolution, Section, Share, Weight


class Ramp(Section):
    """From `start` to `end` along half a cosine, over the first `kimg`."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    kimg: PositiveFloat


def _kind(value: object) -> str:
    return 'ramp' if isinstance(value, (dict, Ramp)) else 'number'


Rate = Annotated[Annotated[PositiveFloat, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]
RampedWeight = Annotated[Annotated[Weight, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]
RampedShare = Annotated[Annotated[Share, Tag('number')] | Annotated[Ramp, Tag('ramp')], Discriminator(_kind)]


class DataConfig(Section):
    path: Location = Field(repr=False)            # folder, http(s)://, gs://, hf:// or pipe: with {} for the file name
    resolution: Resolution | None = None          # (height, width); None: as packed
    conditional: bool = False                     # train on the dataset's classes
    pairs: bool = False                           # each second picture is another one of the class before it (SD-GAN)
    lanes: PositiveInt = 64                       # a multiple of every number of ranks the run will ever have
    flip: bool = False                            # horizontal flips, at random
    workers: int = Field(2, ge=0)                 # decoding processes per rank
    cache_dir: Folder | None = None               # for remote shards; None: the user's cache folder
    cache_gb: PositiveFloat = 20.0


class LossConfig(Section):
    name: Literal['minimax', 'nonsaturating', 'wgan', 'least_squares', 'hinge', 'relativistic', 'began',
                  'mad_gan'] = 'nonsaturating'
    d_steps: PositiveInt = 1                      # steps of D for one of G
    auxiliary: Weight = 0.0                       # of a classifier beside D's logit, in place of its conditioning
    began_gamma: PositiveFloat = 0.5              # balance of the reconstruction errors, fakes' over reals'
    began_rate: PositiveFloat = 0.001             # of k


class RegularizerConfig(Section):
    d_interval: PositiveInt = 1                   # steps between D's gradient penalties; 1: in D's main phase
    g_interval: PositiveInt = 4                   # steps between path length penalties
    r1: RampedWeight = 0.0                       # gamma of gamma / 2 |grad D(real)|^2
    r2: RampedWeight = 0.0                       # the same at fakes
    wgan_gp: Weight = 0.0
    dragan: Weight = 0.0
    drift: Weight = 0.0
    lecam: Weight = 0.0
    lecam_decay: Beta = 0.99                      # a step, of the means of the logits
    weight_clip: Weight = 0.0                     # D's weights stay in [-x, x]
    path_length: Weight = 0.0
    path_length_decay: float = Field(0.01, gt=0, le=1)
    path_length_shrink: PositiveInt = 2           # of the batch
    orthogonal: Weight = 0.0                      # on G
    orthogonal_form: Literal['relaxed', 'plain'] = 'relaxed'
    normalise: Literal['none', 'spectral', 'stable_rank'] = 'none'   # the weights of D ...
    normalise_g: bool = False                     # ... and of G
    stable_rank: float = Field(0.7, gt=0, le=1)   # share of the full rank


class OptimConfig(Section):
    g_lr: Rate = 0.002
    d_lr: Rate = 0.002
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    beta2_ramp: Ramp | None = None                # in place of the second beta
    eps: PositiveFloat = 1e-8


class EMAConfig(Section):
    half_life_kimg: Rate = 10.0
    rampup: float | None = Field(None, gt=0)      # half-life at most this share of the images shown; None: no ramp
    start_kimg: float = Field(0.0, ge=0)          # until then the average is the network itself
    w_avg_beta: float = Field(0.998, ge=0, lt=1)


class AugmentConfig(Section):
    name: Literal['none', 'ada', 'diffaugment'] = 'none'
    groups: tuple[Literal['blit', 'geometry', 'color', 'filter', 'noise', 'cutout'], ...] = ('blit', 'geometry', 'color')
    policies: tuple[Literal['color', 'translation', 'cutout'], ...] = ('color', 'translation', 'cutout')  # of DiffAugment
    p: RampedShare | None = None                  # None: adapted to `target`
    target: Share = 0.6                           # mean sign of D(real)
    speed_kimg: PositiveFloat = 500.0             # to move p from 0 to 1
    interval: PositiveInt = 4                     # steps between adjustments


BySide = dict[PositiveInt, PositiveInt]


class GrowthConfig(Section):
    """Maps are by the stage's shorter side in px; what is missing is as outside of growth."""

    start_resolution: PositiveInt = 8             # px, of the shorter side
    fade_kimg: PositiveFloat = 600.0
    stage_kimg: PositiveFloat = 600.0
    batch: BySide = {}
    micro_batch: BySide = {}
    g_lr: dict[PositiveInt, PositiveFloat] = {}
    d_lr: dict[PositiveInt, PositiveFloat] = {}


class ParallelConfig(Section):
    """How networks, gradients and optimizers are spread over the ranks."""

    strategy: Literal['data', 'fsdp', 'zero'] = 'data'   # whole on every rank; cut into parts; only moments in parts
    replicas: PositiveInt = 1                     # of fsdp: sets of parts, say one a node; divides the ranks
    stage: int = Field(1, ge=1, le=3)             # of zero; only 1 goes with penalties on gradients
    timeout_minutes: PositiveFloat = 10.0         # a rank that keeps the others waiting for so long is named, and all end


Metric = Literal['fid', 'kid', 'is', 'precision', 'recall', 'density', 'coverage', 'ppl', 'intra_fid']


class CheckpointConfig(Section):
    interval_kimg: PositiveFloat = 200.0
    keep: PositiveInt = 3
    best: Metric | None = None                    # kept as well: the checkpoint with the best score of this metric


class EvaluateConfig(Section):
    """How good the pictures are: which metrics, from which features, of how many pictures."""

    interval_kimg: PositiveFloat | None = None    # None: not while training
    metrics: tuple[Metric, ...] = Field(('fid', 'kid'), min_length=1)
    images: int = Field(50000, ge=10)             # fakes
    reals: int = Field(50000, ge=10)              # at most; drawn from the dataset by `seed`
    seed: int = Field(0, ge=0)
    psi: float = 1.0
    truncation: PositiveFloat | None = None       # latents are drawn again until |z| is below
    resizer: Literal['clean', 'legacy'] = 'clean'
    extractor: str = 'auto'                       # inception, effnet_lite0, or a TorchScript or ONNX file, which takes:
    extractor_size: PositiveInt = 224             # px
    extractor_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)   # of values from 0 to 1
    extractor_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    extractor_sha256: str | None = None           # that the weights must have


class LogConfig(Section):
    interval_kimg: PositiveFloat = 4.0
    grid_kimg: PositiveFloat = 200.0
    grid: tuple[PositiveInt, PositiveInt] = (4, 8)   # rows, columns
    keys: bool = False                            # write the sample keys of each step, for audits
    singular_values: bool = False                 # the top three of each layer, with each report


SignalName = Literal['real_sign', 'overfitting', 'loss_ratio', 'diversity', 'class_diversity', 'duplicates',
                     'class_duplicates', 'gradient_norm', 'gradient_peak', 'spectral_growth', 'near_overflow']
SIGNAL_NAMES = get_args(SignalName)


class GuardConfig(Section):
    """Watches for collapse and overfitting, with each report. Signals and their thresholds: trainer/alarms.py."""

    action: Literal['off', 'warn', 'stop', 'rollback'] = 'warn'
    start_kimg: float | None = Field(None, ge=0)  # no alarm before; None: four half-lives of the EMA
    patience: PositiveInt = 3                     # reports in a row
    pictures: int = Field(64, ge=16)              # fakes, and as many reals
    data: Location | None = Field(None, repr=False)   # packed pictures that are not trained on, to see D overfit
    thresholds: dict[SignalName, float] = {}      # in place of the usual ones
    lr_factor: float = Field(0.5, gt=0, lt=1)     # of both learning rates, with each rollback
    rollbacks: PositiveInt = 3                    # at most; then the run is stopped
