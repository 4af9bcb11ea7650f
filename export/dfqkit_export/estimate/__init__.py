"""The drop of accuracy on real images, estimated without a label, or the reason why it cannot be.

What belongs here: the estimate (`drop`), what it measures (`features`), and what was fitted where the truth is known
(`calibration`, with the constants in ``constants.json``).
"""

from __future__ import annotations

from dfqkit_export.estimate.drop import Estimate, estimate_drop, estimate_of

__all__ = ["Estimate", "estimate_drop", "estimate_of"]
