"""The third column: accuracy on corrupted versions of the test set; Sec. 5.1 of the paper, "OOD"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rift.corruption_names import SELECTIONS, SEVERITIES, STANDARD
from rift.data.corrupted import CorruptedSet
from rift.progress import measured
from rift.runtime import distributed
from rift.stages.session import Session
from rift.store import StageFolder

# The means that papers report, by name: their corruptions and severities.
MEANS = {
    "15x5": (STANDARD, SEVERITIES),
    "15_severity5": (STANDARD, SEVERITIES[-1:]),
    "18x5": (SELECTIONS["official18"], SEVERITIES),
}


def corruption_evaluation(
    session: Session,
    folder: StageFolder,
    weights: dict[str, Tensor],
    corruptions: Sequence[str],
    severities: Sequence[int],
    corrupted: CorruptedSet,
) -> dict[str, Any]:
    """Accuracy on every version, a corruption at a severity. Resumable after each one.

    Of several processes each takes a version at a time.

    Args:
        session: data, machine, seed.
        folder: gets the verdict on every image of every version as `verdicts`, (N,) each, under
            `<corruption>/<severity>`, and a metrics row per corruption.
        weights: a state dict.
        corruptions, severities: the versions are all their pairs.
        corrupted: the images.

    Returns:
        What the images are, and the number of them that are right in each version.
    """
    found = folder.load_resume_point()
    verdicts = {} if found is None else found[0]
    network = session.network(weights)
    labels = corrupted.labels.to(session.runtime.device)
    versions = [(corruption, severity) for corruption in corruptions for severity in severities]
    missing = [version for version in versions if "{}/{}".format(*version) not in verdicts]
    at_once = distributed.world_size()

    def judge(version: tuple[str, int]) -> Tensor:
        return right_on(session, network, corrupted, *version, labels).to(torch.uint8).cpu()

    with measured("corruptions", len(corruptions) * len(severities) * len(labels)) as meter:
        meter.advance(len(verdicts) * len(labels))
        for start in range(0, len(missing), at_once):
            group = missing[start : start + at_once]
            for (corruption, severity), right in zip(group, distributed.each(group, judge), strict=True):
                verdicts[f"{corruption}/{severity}"] = right
                if severity == severities[-1]:
                    index = corruptions.index(corruption)
                    folder.add_row({"index": index, "corruption": corruption} | row_of(corruption, verdicts))
                folder.save_resume_point(verdicts, {})
                meter.advance(len(labels))
    folder.save("verdicts", verdicts)
    correct = {name: int(right.sum()) for name, right in verdicts.items()}
    return {
        "kind": corrupted.kind,
        "paired": corrupted.paired,
        "images": corrupted.identity,
        "num_images": len(labels),
        "correct": correct,
        "means": named_means({name: count / len(labels) for name, count in correct.items()}),
    }


def row_of(corruption: str, verdicts: Mapping[str, Tensor]) -> dict[str, float]:
    """A corruption's accuracy at each severity, `severity_1` and so on, and their mean, `accuracy`."""
    found = {
        f"severity_{version.partition('/')[2]}": right.double().mean().item()
        for version, right in verdicts.items()
        if version.partition("/")[0] == corruption
    }
    return {"accuracy": sum(found.values()) / len(found)} | found


@torch.no_grad()
def right_on(
    session: Session,
    network: nn.Module,
    corrupted: CorruptedSet,
    corruption: str,
    severity: int,
    labels: Tensor,
) -> Tensor:
    """Which images of one version are classified rightly, (N,) bool on the device."""
    runtime = session.runtime
    passes = corrupted.batches(corruption, severity, runtime.batch_size, runtime.device)
    judged = runtime.filled(network, len(labels))
    laid_out = (runtime.laid_out(images.float() / 255, torch.float32) for images in passes)
    guesses = [judged(images).argmax(dim=1) for images in laid_out]
    return torch.cat(guesses) == labels


def named_means(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Those of the means in use whose versions were all measured.

    Args:
        accuracies: by `<corruption>/<severity>`.

    Returns:
        `15x5`, `15_severity5`, `18x5`, and `all` that was measured: unweighted means, as fractions.
    """
    wanted = {
        mean: [f"{name}/{severity}" for name in names for severity in severities]
        for mean, (names, severities) in MEANS.items()
    }
    wanted["all"] = list(accuracies)
    return {
        mean: sum(accuracies[version] for version in versions) / len(versions)
        for mean, versions in wanted.items()
        if set(versions) <= accuracies.keys()
    }


def per_image(verdicts: Mapping[str, Tensor], corruptions: Sequence[str]) -> Tensor:
    """The share of an image's versions, of these corruptions, that are right: (N,) float64."""
    chosen = [right for name, right in verdicts.items() if name.partition("/")[0] in corruptions]
    return torch.stack(chosen).double().mean(dim=0)
