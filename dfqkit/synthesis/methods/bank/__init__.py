"""A stored set of images as a source: what was made once serves many runs.

What belongs here: checking the set, and who gets which of its images. There is no paper and no loss; making the images
cost nothing here, and what it cost when the set was made is `Bank.set_cost`. The duties are two:

- A set is refused where it is not what its maker wrote: cut short, changed, of other images or of another teacher
  (whose classes its images were made to show); all before any compute is spent.
- No image plays two parts. Images that are equal pixel by pixel count once. Of the rest, the synthesizer that grades
  takes as many as it was asked for, evenly spread over the set, the one that trains takes the others; each is told by
  `Demand.beside` how many the other takes. Of what trains, the fresh images are evenly spread again; all that are left
  train, more than were asked for if there are more.

Images are read from disk when they are drawn; of the set's answers no use is made, since the teacher is at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from dfqkit.config.registry import synthesizer_configs
from dfqkit.config.synthesis import UNKNOWN, SynthesizerConfig
from dfqkit_export.errors import ArtefactError

if TYPE_CHECKING:
    from dfqkit_export.images.stored import StoredBank


class BankConfig(SynthesizerConfig):
    """Images of a stored set, each for training or fresh, never both."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.bank.method:Bank"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    file_keys: ClassVar[tuple[str, ...]] = ("path",)

    method: Literal["bank"] = "bank"
    path: str = Field(
        min_length=1, description="Folder of a set (`dfqkit synthesize RECIPE --n N --out DIR`), or one file of images."
    )
    other_teacher: bool = Field(
        False, description="Take a set that was made for another teacher, too. Ours: false, since classes may differ."
    )
    part: Literal["training", "grading"] = Field(
        "training", description="Which images; the source that grades is given the other ones."
    )

    def real_data(self) -> str | None:
        """Return what the set says, if it does and can be read."""
        stored = self._opened()
        found = UNKNOWN if stored is None else stored.facts.get("real_data", UNKNOWN)
        return None if found is None else str(found)

    def warnings(self) -> tuple[str, ...]:
        """Return what the set warns of, since nothing made from it is better; of a lone file, what its source does."""
        stored, what = self._opened(), f"Image set '{Path(self.path).name}'"
        if stored is None:
            return (f"{what} could not be read again: what it warns of is not known.",)
        found, kind = stored.facts.get("warnings"), _kind_of(stored)
        if found is None:
            found = () if kind is None or kind.warning is None else (kind.warning,)
        return tuple(f"{what}: {text}" for text in found)

    def made_from(self) -> str:
        """Return what the set's method says."""
        stored = self._opened()
        kind = None if stored is None else _kind_of(stored)
        return "" if kind is None else kind.origin

    def grading(self) -> Self:
        """Return the same set, the images that do not train."""
        return self.model_copy(update={"part": "grading"})

    def _opened(self) -> StoredBank | None:
        """Return the set, or None: a report is written where its sources are gone, too."""
        from dfqkit_export.images.stored import StoredBank  # numpy, which listing methods does not need

        try:
            return StoredBank.open(self.path)
        except ArtefactError:
            return None


def _kind_of(stored: StoredBank) -> type[SynthesizerConfig] | None:
    """Return the section of the method that made a set, which calls its source METHOD or METHOD:PART."""
    return synthesizer_configs().get(stored.source.partition(":")[0])
