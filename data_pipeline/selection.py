"""Selection: the part of an index that a plan runs over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Part of an index: a plan runs over its positions, and `ids` gives them their names."""

    lengths: NDArray[np.int64]
    """Selected samples per shard."""
    sample_ids: NDArray[np.int64] | None
    """Ids of the selected samples in order; None selects all."""

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions among the selected samples -> sample ids."""
        return positions if self.sample_ids is None else self.sample_ids[positions]
