"""What a scan returns: a data frame that knows its least and its most critical module."""

from __future__ import annotations

import pandas as pd

from rift.errors import UserError


class Ranking(pd.DataFrame):
    """Modules and how critical they are, in the network's order; a `pandas.DataFrame` in everything else.

    Columns: `module` (exact name), `mrc` (rise of the mean cross-entropy), `drop` (fall of the robust
    accuracy, a fraction), `rank` (1 is the least critical). In `attrs`: `robust_loss` and `robust_accuracy`
    of the network as it is on `num_images` adversarial examples, and `fallbacks`, a sentence for each thing
    that could not be done the fast way; empty where the network was folded, and cut at every module.

    Rows may be filtered and sorted: the least critical module is that of the rows that are left.
    """

    @property
    def _constructor(self) -> type[Ranking]:
        return Ranking

    @property
    def least_critical(self) -> str:
        """The module whose perturbation harms robustness least, for `rift.fine_tune`."""
        return self._at(self._mrc().idxmin())

    @property
    def most_critical(self) -> str:
        """The module whose perturbation harms robustness most."""
        return self._at(self._mrc().idxmax())

    def _mrc(self) -> pd.Series:
        missing = {"module", "mrc"} - set(self.columns)
        if missing or self.empty:
            what = f"the columns {' and '.join(sorted(missing))}" if missing else "any row"
            raise UserError(f"This part of a ranking is without {what}: ask the whole ranking.")
        # By position: an index may hold a label twice.
        return self["mrc"].reset_index(drop=True)

    def _at(self, position: int) -> str:
        return str(self["module"].iloc[position])
