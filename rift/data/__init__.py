"""Image sets as whole uint8 tensors, and batches cut from them without any per-image Python."""

from rift.data.batches import Batch, batches
from rift.data.checks import SHAPES
from rift.data.cifar10_1 import read_cifar10_1
from rift.data.load import DATASETS, load_dataset
from rift.data.published import open_published
from rift.data.splits import Dataset, Split, as_floats

__all__ = [
    "DATASETS",
    "SHAPES",
    "Batch",
    "Dataset",
    "Split",
    "as_floats",
    "batches",
    "load_dataset",
    "open_published",
    "read_cifar10_1",
]
