"""What cost_weight weighs: how much of the dearest expert's use each expert takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.registry import Registry


def relative_use(registry: Registry) -> NDArray[np.float64]:
    """What a request to each expert uses, as a share of the dearest: by prices, or by active parameters where nothing
    costs money. An expert of unknown size counts as the largest. Shape (n_experts,), 0 to 1."""
    use = [spec.prices.input + spec.prices.output for spec in registry.experts]
    if not any(use):
        sizes = [spec.active_parameters_b for spec in registry.experts]
        largest = max((size for size in sizes if size is not None), default=0.0)
        use = [largest if size is None else size for size in sizes]
    return np.array(use, dtype=np.float64) / (max(use) or 1.0)
