"""For torch.hub: `torch.hub.load("<checkout>", "rift_model", "<export>", source="local")`."""

from rift.export import load_exported

dependencies = ["torch", "timm", "safetensors"]


def rift_model(folder_or_card, which="rift", device="cpu"):  # noqa: ANN001, ANN201 (torch.hub shows the signature)
    """θ* ("rift") or θ_AT ("at") of a folder that `python -m rift.export` has written."""
    return load_exported(folder_or_card, which, device)
