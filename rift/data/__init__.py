"""Image sets as whole uint8 tensors, and batches cut from them without any per-image Python."""

from rift.data.batches import Batch, batches
from rift.data.checks import SHAPES
from rift.data.load import DATASETS, load_dataset
from rift.data.splits import Dataset, Split

__all__ = ["DATASETS", "SHAPES", "Batch", "Dataset", "Split", "batches", "load_dataset"]
