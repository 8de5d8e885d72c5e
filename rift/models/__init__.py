"""Networks: ResNets and the wide ResNet of the AT literature, any of timm's, and anyone's weights."""

from rift.models.checkpoint_import import load_foreign_checkpoint
from rift.models.modules import scannable_modules
from rift.models.registry import MODELS, build_model

__all__ = ["MODELS", "build_model", "load_foreign_checkpoint", "scannable_modules"]
