"""This module picks a few real pictures to look at or compare with: always the same ones, from few shards."""

from math import prod

import numpy as np

from imago.trainer.data.order import Order
from imago.trainer.data.shards import Dataset, Sample, SampleReader

LEAST_CONDITIONS, MOST_CONDITIONS, MOST_VALUES = 64, 1024, 1 << 16   # each checkpoint and export holds them
SHARDS_SEARCHED = 16   # for pictures of rare classes: all labels of a shard must be read


def first_samples(dataset: Dataset, size: tuple[int, int], lanes: int, seed: int, count: int) -> list[Sample]:
    """Return the first `count` samples of lane 0, at `size` (height, width). Those of one lane lie in the fewest shards."""
    order = Order(dataset.manifest, lanes, seed)
    reader = SampleReader(dataset, size, max_open=2)
    return [reader.read(*order.locate(number * lanes))[0] for number in range(count)]


def first_conditions(dataset: Dataset) -> np.ndarray:
    """Return the conditions of the first K samples in the order of the shards, float32 [K, *shape].

    K is as many as MOST_VALUES values allow, but 64 to 1024, and never more than there are samples.
    """
    manifest = dataset.manifest
    reader, found = SampleReader(dataset, dataset.size, max_open=1), []
    most = min(max(MOST_VALUES // prod(manifest.condition_shape), LEAST_CONDITIONS), MOST_CONDITIONS)
    for shard, entry in enumerate(manifest.shards):
        found += [reader.condition(shard, number) for number in range(min(entry.samples, most - len(found)))]
    return np.stack(found)


def rarest_classes(class_counts: tuple[int, ...], most: int) -> list[int]:
    """Return the rarest classes that have pictures, up to `most`: these are the first to be lost, or learned by heart."""
    there = [label for label, count in enumerate(class_counts) if count]
    return sorted(sorted(there, key=class_counts.__getitem__)[:most])


def samples_of_classes(dataset: Dataset, size: tuple[int, int], labels: list[int], each: int) -> list[Sample]:
    """Return up to `each` samples of each label, at `size` (height, width); fewer if the first shards hold fewer."""
    reader, found = SampleReader(dataset, size, max_open=1), {label: [] for label in labels}
    wanted = {label: min(each, dataset.manifest.class_counts[label]) for label in labels}
    for shard in range(min(len(dataset.manifest.shards), SHARDS_SEARCHED)):
        missing = [label for label in labels if len(found[label]) < wanted[label]]
        for label in missing:
            found[label] += reader.read_class(shard, label, wanted[label] - len(found[label]))
        if not missing:
            break
    return [sample for label in labels for sample in found[label]]
