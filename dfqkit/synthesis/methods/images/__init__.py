"""Images similar to the lost ones, used as they are.

What belongs here: reading them, and who gets which. There is no paper and no loss. Labels are ignored: whatever the
images show, the teacher says what it is. The one duty is that no image plays two parts:

- Images that are equal pixel by pixel count once.
- The rest is put in the order of a hash of the pixels, which depends neither on the seed nor on names or folders. The
  synthesizer that trains takes from the front of it, the separate one that grades from the back; each is told by
  `Demand.beside` how many the other takes.
- Of what is taken, the seed decides what trains and what is fresh.

Of a source that can be read in part no more images are read than both together need, evenly spread over it.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from dfqkit.config.synthesis import SynthesizerConfig


class ImagesConfig(SynthesizerConfig):
    """Images similar to the lost ones, from a file or folder, used as they are; labels are ignored."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.images.method:Images"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    file_keys: ClassVar[tuple[str, ...]] = ("path",)

    method: Literal["images"] = "images"
    path: str = Field(
        min_length=1,
        description="Images: .npz, a folder, class folders, .zip with labels.csv, torchvision:NAME:ROOT (its test "
        "split), as for validate.data; labels are ignored. They should not be the images that validate.data measures "
        "on.",
    )
    resize: int | None = Field(None, ge=1, description="Shorter side, bicubic, before the crop.")
    crop: int | None = Field(None, ge=1, description="Centre crop.")
    limit: int | None = Field(
        None, ge=1, description="Only so many images, evenly spread; null: as many as the run needs."
    )
    part: Literal["training", "grading"] = Field(
        "training", description="Which end of them; the source that grades is given the other one."
    )

    def real_data(self) -> str:
        """Return what was given: always, as they are it."""
        return "similar images"

    def grading(self) -> Self:
        """Return the same images from the other end."""
        return self.model_copy(update={"part": "grading"})
