"""An evaluation compares pictures, or a generator's fakes, with a dataset. It gives scores with intervals, and how they came
about."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.metrics import bootstrap
from imago.trainer.metrics.extractors import Extractor
from imago.trainer.metrics.features import Rows, features_of_fakes, features_of_pictures
from imago.trainer.metrics.frechet import frechet_distance, intra_class_distance
from imago.trainer.metrics.inception_score import inception_score, score_replicates
from imago.trainer.metrics.kid import kernel_distance, kernel_replicates
from imago.trainer.metrics.manifold import compare_manifolds
from imago.trainer.metrics.perceptual_path_length import perceptual_path_lengths
from imago.trainer.metrics.pictures import Fakes, Pictures
from imago.trainer.metrics.reference import reference_features
from imago.trainer.ranks import dist
from imago.trainer.ranks.progress import Progress

LEAST = 10   # neighbours and splits need so many pictures
ALONE = {'is', 'ppl'}   # metrics that look at no reals
OF_NEIGHBOURS = ('precision', 'recall', 'density', 'coverage')
Interval = tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """Holds scores by name, which tells the extractor. Only scores with an equal `protocol` can be compared."""

    values: dict[str, float]
    intervals: dict[str, Interval]
    protocol: dict


def score_name(metric: str, extractor: Extractor) -> str:
    """Name a score. Only Inception's distance is called FID, and the legacy resizer is named."""
    if extractor.name == 'inception':
        name = 'ppl_inception' if metric == 'ppl' else metric
    else:
        name = f'{metric.replace("fid", "fd")}_{extractor.name}'
    return name + ('' if extractor.resizer == 'clean' else f'_{extractor.resizer}')


def check_evaluation(config: EvaluateConfig, source: Pictures | Fakes, reference: Pictures) -> None:
    """Raise ValueError for metrics that `source` and `reference` cannot give."""
    if min(source.count, reference.count) < LEAST:
        raise ValueError(f'{source.count} pictures against {reference.count}: both must be at least {LEAST}')
    if len(set(config.metrics)) < len(config.metrics):
        raise ValueError(f'metrics {",".join(config.metrics)}: one is named twice; name each once')
    maker = source.maker if isinstance(source, Fakes) else None
    labelled = maker.classes if maker else not isinstance(source, Fakes) and source.labelled
    if 'ppl' in config.metrics and not (maker and maker.has_paths):
        raise ValueError('ppl is measured between latents, which these pictures have not; leave it out')
    if 'intra_fid' in config.metrics and not (labelled and reference.labelled):
        raise ValueError('intra_fid needs a conditional model and a dataset with classes; leave it out')
    if isinstance(source, Fakes):
        source.maker.check(source.sampling)


def evaluate(source: Pictures | Fakes, reference: Pictures, extractor: Extractor, config: EvaluateConfig,
             stopped: Callable[[], bool] = lambda: False) -> Scores:
    """Score `source`. All ranks call it together, and all get the result, with the same bits on any number of ranks.

    Rank 0 holds the features of all pictures, 8 KB each with Inception. Raises ValueError if the readable pictures are too
    few or the extractor gives no features, and Stopped as soon as `stopped` is true on a rank.
    """
    wanted = set(config.metrics)
    reals = reference_features(reference, extractor, stopped) if wanted - ALONE else {}
    fakes: Rows | None = {}
    if wanted - {'ppl'}:
        if isinstance(source, Fakes):
            fakes = features_of_fakes(source, extractor, 'is' in wanted, 'fakes', stopped)
        else:
            fakes = features_of_pictures(source, extractor, 'is' in wanted, 'fakes', stopped)
    lengths = None
    if isinstance(source, Fakes) and 'ppl' in wanted:
        lengths = perceptual_path_lengths(source, extractor, 'paths', stopped)

    def score() -> Scores:
        found, more = _Computation(fakes, reals, lengths, config, extractor.device).scores()
        names = {metric: score_name(metric, extractor) for metric in config.metrics}
        return Scores({name: found[metric][0] for metric, name in names.items()},
                      {name: found[metric][1] for metric, name in names.items()},
                      _protocol(config, source, reference, extractor, fakes, reals) | more)
    return dist.from_main(score)


def _protocol(config: EvaluateConfig, source: Pictures | Fakes, reference: Pictures, extractor: Extractor,
              fakes: Rows, reals: Rows) -> dict:
    maker = source.maker if isinstance(source, Fakes) else None
    size = source.maker.resolution if isinstance(source, Fakes) else source.size
    return {
        'extractor': extractor.name, 'weights_sha256': extractor.sha256, 'resizer': extractor.resizer,
        'resolution': size and list(size), 'fakes': len(fakes['labels']) if fakes else source.count,
        'reals': len(reals['labels']) if reals else 0, 'reals_at_most': config.reals, 'dataset': reference.digest,
        'seed': config.seed, **{name: getattr(config, name) if maker else None for name in ('psi', 'psi_cutoff', 'truncation')},
        'noise': config.noise if maker and maker.noisy else None, 'interval': bootstrap.ABOUT}


class _Computation:
    """Computes scores from features, on rank 0."""

    def __init__(self, fakes: Rows, reals: Rows, lengths: np.ndarray | None, config: EvaluateConfig, device: torch.device):
        self.config, self.lengths, self.device = config, lengths, device
        self.fakes, self.reals = ({name: torch.from_numpy(array).to(device) for name, array in rows.items()}
                                  for rows in (fakes, reals))

    def scores(self) -> tuple[dict[str, tuple[float, Interval]], dict]:
        """Return (value, interval) of each metric, and what else the protocol should say."""
        found, more = {}, {}
        wanted, seed = set(self.config.metrics), self.config.seed
        needed = [self.fakes] * bool(wanted - {'ppl'}) + [self.reals] * bool(wanted - ALONE)
        if any(len(rows.get('labels', ())) < LEAST for rows in needed):
            raise ValueError(f'fewer than {LEAST} pictures could be read')
        pair = self.fakes.get('features'), self.reals.get('features')
        if 'fid' in wanted:
            found['fid'] = self._frechet(lambda *counts: frechet_distance(*pair, *counts))
        if 'intra_fid' in wanted:
            groups = pair[0], self.fakes['labels'], pair[1], self.reals['labels']
            found['intra_fid'] = self._frechet(lambda *counts: intra_class_distance(*groups, *counts)[0])
            more['intra_fid_classes'] = intra_class_distance(*groups)[1]
        if 'kid' in wanted:
            value = kernel_distance(*pair, seed)
            found['kid'] = value, bootstrap.interval(value, kernel_replicates(*pair, bootstrap.KERNEL_TIMES, seed))
        if 'is' in wanted:
            classes = self.fakes['classes'].cpu()
            value = inception_score(classes, seed)
            resamples = list(bootstrap.resample(len(classes), bootstrap.SCORE_TIMES, seed))
            found['is'] = value, bootstrap.interval(value, score_replicates(classes, resamples))
        if wanted & set(OF_NEIGHBOURS):
            manifold = compare_manifolds(*pair)
            found |= {name: bootstrap.mean_interval(getattr(manifold, name), seed) for name in OF_NEIGHBOURS}
        if 'ppl' in wanted:
            found['ppl'] = bootstrap.mean_interval(torch.from_numpy(self.lengths), seed)
        return found, more

    def _frechet(self, distance: Callable[..., float]) -> tuple[float, Interval]:
        times, seed = bootstrap.FRECHET_TIMES, self.config.seed
        value = distance(None, None)
        resamples = zip(bootstrap.resample(len(self.fakes['features']), times, seed, 0),
                        bootstrap.resample(len(self.reals['features']), times, seed, 1), strict=True)
        replicates = []
        with Progress('intervals', times, 'resamples') as progress:
            for both in resamples:
                replicates.append(distance(*(counts.to(self.device) for counts in both)))
                progress.add()
        return value, bootstrap.interval(value, np.array(replicates))
