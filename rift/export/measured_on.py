"""Which images an export's accuracies are of, so that a reader can have the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# How the test split of each data set comes about.
SPLITS = {
    "cifar10": "the official test batch, in its order",
    "cifar100": "the official test batch, in its order, with the fine labels",
    "tiny_imagenet": "the official validation images, in the order of val_annotations.txt",
    "digits": (
        "of the 1797 images of scikit-learn's load_digits(), which have no official split, a fifth of each "
        "class c (rounded), in their order there: those of its n images whose positions come first in "
        "torch.randperm(n) after manual_seed(s), where s is the first 63 bits of the SHA-256 of "
        r"'str:digits test set\x1fint:c'; grey levels 0 to 16 are 0 to 255, rounded"
    ),
    "image_folder": "all images below test/ of a folder of the user's own, class by class, sorted by name",
}


def measured_on(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The test images of a job: whose they are, how many, how they were chosen, and their digest.

    Args:
        summary: of the job.
    """
    data, options = summary["provenance"]["data"], summary["options"]
    how = SPLITS.get(data["name"], "as another package's reader gives them")
    if (limit := options["dataset.test_limit"]) is not None:
        how += f"; at most {limit} of them: the first image of each class, then the second, and so on"
    return {
        "dataset": data["name"],
        "split": "test",
        "images": data["counts"]["test"],
        "how": how,
        "sha256": data["sha256"]["test"],
        "mean": options["dataset.mean"],
        "std": options["dataset.std"],
        "test_limit": limit,
    }


def in_words(images: Mapping[str, Any]) -> str:
    """The same as a paragraph of Markdown.

    Args:
        images: see `measured_on`.
    """
    options = f"mean={images['mean']}, std={images['std']}"
    options += f", test_limit={images['test_limit']}" if images["test_limit"] is not None else ""
    return (
        f"n counts images of the {images['split']} split of {images['dataset']}, {images['images']} in all: "
        f"{images['how']}. The SHA-256 of their bytes (uint8, N×C×H×W) and then of their labels (int64) is "
        f'`{images["sha256"]}`. With rift: `rift.data.load_dataset("{images["dataset"]}", root="data", '
        f"{options}).test`."
    )
