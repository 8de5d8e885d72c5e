"""For torch.hub: `torch.hub.load("<checkout>", "rift_model", "<export>", source="local")`."""

from torch import nn as _nn

from rift.export import load_exported as _load_exported

dependencies = ["torch", "timm", "safetensors"]


def rift_model(folder_or_card: str, which: str = "rift", device: str = "cpu") -> _nn.Module:
    """θ* ("rift") or θ_AT ("at") of a folder that `python -m rift.export` has written."""
    return _load_exported(folder_or_card, which, device)
