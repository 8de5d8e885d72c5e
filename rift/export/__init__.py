"""Finished jobs as models that travel: weights, a card, and the lines that load them."""

from rift.export.card import load_exported
from rift.export.folder import export_job

__all__ = ["export_job", "load_exported"]
