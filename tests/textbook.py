"""The inner loops as the widespread AT and RiFT code writes them: plain, NCHW, float32, nothing clever.

Each fast path of `rift` must equal its twin here (tests), and is timed against it (scripts/benchmark.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class ImageList(Dataset):
    """Images as torchvision keeps them, transformed one by one."""

    def __init__(self, images: Tensor, labels: Tensor, padding: int, augment: bool = True) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.numpy()
        moved = [
            transforms.RandomCrop(self.images.shape[1], padding=padding),
            transforms.RandomHorizontalFlip(),
        ]
        self.transform = transforms.Compose([*(moved if augment else []), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, np.int64]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    padding: int = 4,
    workers: int = 2,
    augment: bool = True,
) -> DataLoader:
    """Crop, flip and conversion per image, in worker processes; for evaluation the conversion alone."""
    data = ImageList(images, labels, padding, augment)
    return DataLoader(data, batch_size, shuffle=augment, num_workers=workers)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, epsilon: float, step_size: float, steps: int
) -> Tensor:
    """PGD under ℓ∞; the backward pass computes the weights' gradients too."""
    delta = (start - x).detach()
    for _ in range(steps):
        delta.requires_grad_(True)
        loss = F.cross_entropy(model(x + delta), y)
        loss.backward()
        gradient = delta.grad.detach()
        delta = torch.clamp(delta.detach() + step_size * torch.sign(gradient), -epsilon, epsilon)
        delta = torch.clamp(x + delta, 0, 1) - x
    return (x + delta).detach()


def at_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    epsilon: float,
    step_size: float,
    steps: int,
) -> float:
    """One update of PGD adversarial training, crafted in eval mode."""
    model.eval()
    adversarial = pgd(model, x, y, start, epsilon, step_size, steps)
    return update(model, optimizer, lambda net: F.cross_entropy(net(adversarial), y))


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[nn.Module], Tensor]
) -> float:
    """One step down a loss, in train mode."""
    model.train()
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    optimizer.step()
    return loss.item()


def robust_loss(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on fixed adversarial examples."""
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for x, y in batches:
            output = model(x)
            loss += F.cross_entropy(output, y, reduction="sum").item()
            correct += (output.argmax(1) == y).sum().item()
            count += len(y)
    return loss / count, correct / count


def mrc(
    model: nn.Module,
    names: str | Sequence[str],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    lr: float,
    epsilon_w: float,
    epochs: int,
    stop: bool,
    worst: bool,
    shuffled: Sequence[Sequence[tuple[Tensor, Tensor]]] | None = None,
) -> tuple[float, float]:
    """Algorithm 1 through the whole network: (MRC, robust accuracy drop) of one module, or of several that
    move at once, each within its own ball.

    With `stop`, the search ends after the first projection (the paper); with `worst`, the worst epoch
    counts instead of the last one (the published code, which also shuffles: `shuffled` are each epoch's
    batches).
    """
    model.eval()
    names = [names] if isinstance(names, str) else names
    weights = [model.get_submodule(name).weight for name in names]
    originals = [weight.detach().clone() for weight in weights]
    base_loss, base_accuracy = robust_loss(model, batches)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    optimizer = torch.optim.SGD(weights, lr=lr)
    scores = []
    for epoch in range(epochs):
        for x, y in batches if shuffled is None else shuffled[epoch]:
            optimizer.zero_grad()
            (-F.cross_entropy(model(x), y)).backward()
            optimizer.step()
        violated = False
        for weight, original in zip(weights, originals, strict=True):
            radius = epsilon_w * original.norm().item()
            delta = weight.detach() - original
            if delta.norm().item() > radius:
                violated = True
                delta = delta * (radius / delta.norm().item())
            with torch.no_grad():
                weight.copy_(original + delta)
        scores.append(robust_loss(model, batches))
        if violated and stop:
            break
    with torch.no_grad():
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original)
    loss, accuracy = max(scores) if worst else scores[-1]
    return loss - base_loss, base_accuracy - accuracy


def worst_of_k(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    starts: Sequence[Sequence[Tensor]],
    epsilon: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Per run and image: right without and under attack. Every image is attacked in every run; (runs, N)."""
    model.eval()
    runs = []
    for run in starts:
        verdicts = []
        for (x, y), start in zip(batches, run, strict=True):
            clean = model(x).argmax(1) == y
            adversarial = pgd(model, x, y, start, epsilon, step_size, steps)
            with torch.no_grad():
                verdicts.append(clean & (model(adversarial).argmax(1) == y))
        runs.append(torch.cat(verdicts))
    return torch.stack(runs)


def fixed_batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive batches of float images."""
    yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)
