"""Files of the constructions of real classifiers, written again by ONNX Runtime's optimizer, in canonical form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from dfqkit_export.gate.regions import compare_structures
from dfqkit_export.gate.structure import read_structure
from dfqkit_export.onnxfile.canonical import canonical
from tests._rewrites import REWRITES
from tests._toys import TOYS

FAST = ("option_a", "shuffle", "channels_last")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TOYS])
@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_what_the_optimizer_writes_is_the_same_network(exported: Callable[..., Any], name: str, level: str) -> None:
    _, path = exported(name, "w8a8")
    before = onnx.load(str(path))
    after = REWRITES[f"written_by_the_runtime_{level}"](onnx.load(str(path)))
    assert after is not None
    ends = [output.name for output in before.graph.output]
    forms = [read_structure(canonical(model), ends) for model in (before, after)]
    assert not list(compare_structures(*forms))
