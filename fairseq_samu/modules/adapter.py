"""Bottleneck adapters: small residual networks that train inside a model which does not."""

from __future__ import annotations

from torch import Tensor, nn


class Adapter(nn.Module):
    """Layer norm → down → ReLU → up, added to the input.

    The last projection starts at zero, so that a new adapter changes nothing.

    Args:
        dim: width D of a vector.
        bottleneck: width between the projections.

    Raises:
        ValueError: a bottleneck below 1.

    Source: Houlsby et al. 2019 (arXiv 1902.00751), Section 2.1; with the layer norm of Bapna and
        Firat 2019 (arXiv 1909.08478), Section 3.1.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"the adapter's width: expected at least 1, found {bottleneck}")
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Adapt every vector by itself; shapes (…, D) → (…, D)."""
        adapted: Tensor = self.up(self.down(self.norm(x)).relu())
        return x + adapted
