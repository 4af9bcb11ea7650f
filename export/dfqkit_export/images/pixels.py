"""On which scale pixels go into a network, and which means and deviations can be of that scale.

What belongs here: the facts and their check, without numpy, so that recipes are checked by the same words as files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dfqkit_export.errors import ArtefactError

#: The largest pixel on each scale that networks are fed with.
RANGES = (1, 255)
RGB: Final = "RGB"
BGR: Final = "BGR"
#: The orders in which a network may take the colours of an image that has three.
ORDERS = (RGB, BGR)
#: The order of axes of images outside of files: batch, channels, height, width.
LAYOUT: Final = "NCHW"
#: The orders of axes in which a file may take images, and the types of their numbers.
LAST: Final = "NHWC"
LAYOUTS = (LAYOUT, LAST)
FLOAT: Final = "float32"
PIXELS: Final = "uint8"


def check_pixels(
    mean: Sequence[float], std: Sequence[float], pixel_range: int, order: str, layout: str, dtype: str = FLOAT
) -> None:
    """Refuse a mean and a deviation that cannot be of pixels from 0 to ``pixel_range``, and unknown orders.

    Raises:
        ArtefactError: Says which values, and what was probably meant.
    """
    for name, value, allowed in (
        ("pixel_range", pixel_range, RANGES),
        ("channels", order, ORDERS),
        ("layout", layout, LAYOUTS),
        ("dtype", dtype, (FLOAT, PIXELS)),
    ):
        if value not in allowed or isinstance(value, bool):
            message = f"Image {name} is {value!r:.40}; allowed: {', '.join(map(str, allowed))}."
            raise ArtefactError(message)
    if order == BGR and len(mean) != len(BGR):
        message = (
            f"Image channels {BGR} is about three colours, and the image has {len(mean)} channel(s). Leave it out."
        )
        raise ArtefactError(message)
    for name, values in (("mean", mean), ("std", std)):
        if not all(0 <= value <= pixel_range for value in values):
            message = f"Image {name} {_shown(values)} cannot be that of pixels from 0 to {pixel_range}"
            scaled = [value / 255 for value in values]
            if pixel_range == 1 and all(0 <= value <= 1 for value in scaled):
                message += f": divided by 255 it is {_shown(scaled)}"
                hint = "give mean and std so"
                message += (
                    f". If images go in as pixels / 255, {hint}; if they go in as 0 to 255, add pixel_range: 255."
                )
            else:
                message += f"; a mean lies from 0 to {pixel_range}, a deviation above 0 and up to {pixel_range}."
            raise ArtefactError(message)
    if pixel_range > 1 and 0 < max(mean) <= 1:
        message = (
            f"Image mean {_shown(mean)} is that of pixels from 0 to 1, and pixel_range is {pixel_range}: times 255 it "
            f"is {_shown([255 * value for value in mean])}. Give mean and std so, or leave pixel_range out."
        )
        raise ArtefactError(message)


def _shown(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
