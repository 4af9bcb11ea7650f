"""OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit_export.backends.base import Backend, Options, not_installed
from dfqkit_export.backends.openvino import targets

if TYPE_CHECKING:
    from dfqkit_export.backends.precision import Realised
    from dfqkit_export.backends.rule import Rule
    from dfqkit_export.backends.session import Session

__all__ = ["OPENVINO"]


def _load(path: Path, options: Options) -> Session:
    from dfqkit_export.backends.openvino.session import OpenVinoSession

    return OpenVinoSession(path, threads=options.threads)


def _executed(path: Path) -> Realised:
    from dfqkit_export.backends.openvino.precision import realised_in_openvino

    return realised_in_openvino(path)


def _rules() -> tuple[Rule, ...]:
    from dfqkit_export.backends.openvino.rules import RULES

    return RULES


OPENVINO = Backend(
    name="openvino",
    title="OpenVINO",
    package="openvino",
    load=_load,
    missing=lambda: not_installed("openvino", extra="openvino"),
    targets=(targets.OPENVINO,),
    executed=_executed,
    rules=_rules,
    sees_layers=True,
    rounds_inside=False,
)
