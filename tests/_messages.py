"""What an error must name. Its wording is free: a test asks for the facts, not for the sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def names(error: BaseException | str, *facts: object) -> None:
    """Demand that a message names each fact: what was found, what is allowed, what to do next."""
    message = " ".join(str(error).split()).casefold()
    missing = [str(fact) for fact in facts if " ".join(str(fact).split()).casefold() not in message]
    assert not missing, f"the message does not name {missing}: {error}"


@contextmanager
def raises_naming(kind: type[BaseException], *facts: object) -> Iterator[None]:
    """Demand that the block is raises_naming by an error of a kind that names each fact."""
    with pytest.raises(kind) as caught:
        yield
    names(caught.value, *facts)
