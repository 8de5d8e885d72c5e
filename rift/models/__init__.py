"""Networks: ResNets and wide ResNets of the AT literature, any of timm's, and anyone's weights."""

from rift.models.checkpoint_form import Images
from rift.models.checkpoint_import import load_foreign_checkpoint
from rift.models.modules import scannable_modules
from rift.models.normalisation_check import check_normalisation
from rift.models.registry import MODELS, build_model, network_name, own_width

__all__ = [
    "MODELS",
    "Images",
    "build_model",
    "check_normalisation",
    "load_foreign_checkpoint",
    "network_name",
    "own_width",
    "scannable_modules",
]
