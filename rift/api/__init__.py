"""The four steps as functions, for anybody's network on [0, 1] images; what `import rift` offers.

The command line's stages do the same work in result folders: both call `rift.stages` and `rift.attacks`.
"""

from rift.api.attacking import attack
from rift.api.interpolating import interpolate
from rift.api.ranking import Ranking
from rift.api.scanning import mrc_scan
from rift.api.tuning import fine_tune

__all__ = ["Ranking", "attack", "fine_tune", "interpolate", "mrc_scan"]
