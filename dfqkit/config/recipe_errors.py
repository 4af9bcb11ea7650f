"""What is said about a mistake in a recipe: where, what was found, what is allowed, and the nearest key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dfqkit_export.words import did_you_mean

__all__ = ["explain", "shown"]


def explain(item: Any, data: dict[str, Any]) -> str:
    """One line for one validation error: path, value, what is allowed, the nearest key."""
    path = [str(part) for part in item["loc"]]
    where = ".".join(path) or "recipe"
    if item["type"] == "extra_forbidden":
        allowed = _allowed_keys(path[:-1], data)
        return f"  {where}: unknown key.{did_you_mean(path[-1], allowed)} Allowed here: {', '.join(allowed)}."
    if item["type"] == "missing":
        return f"  {where}: is missing"
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"  {where}: must be a section, keys with values (found {shown(item['input'])})"
    if item["type"] in ("tuple_type", "list_type"):
        return (
            f"  {where}: must be a list{' of sources' if path[-1] == 'sources' else ''} (found {shown(item['input'])})"
        )
    if item["type"] == "value_error":
        return f"  {where}: {item['ctx']['error']}"
    return f"  {where}: {item['msg'].replace('Input should', 'must', 1)} (found {shown(item['input'])})"


def shown(value: object, length: int = 80) -> str:
    """A value as it is written in Python, cut after ``length`` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _allowed_keys(path: Sequence[str], data: dict[str, Any]) -> list[str]:
    """Keys of the section at ``path``, found by walking the model classes."""
    from dfqkit.config.distill import DistillConfig
    from dfqkit.config.quant import QuantConfig
    from dfqkit.config.recipe import Recipe
    from dfqkit.config.registry import synthesizer_config, synthesizer_names
    from dfqkit.config.student import FloatStudentConfig

    section: Any = Recipe
    dynamic: dict[str, Any] = {"quant": QuantConfig, "distill": DistillConfig, "student": FloatStudentConfig}
    synthesis = data.get("synthesis")
    if list(path[:2]) == ["synthesis", "sources"] and len(path) > 2 and isinstance(synthesis, dict):
        # A source has the keys of its own method, and a share.
        own = _allowed_keys(["synthesis", *path[3:]], {"synthesis": synthesis["sources"][int(path[2])]})
        return own if len(path) > 3 else [*own, "share"]
    if isinstance(synthesis, dict):
        method = str(synthesis.get("method", "mixture"))
        if method in synthesizer_names():
            dynamic["synthesis"] = synthesizer_config(method)
    for depth, part in enumerate(path):
        if depth == 0 and part in dynamic:
            section = dynamic[part]
            continue
        if part.isdigit():
            continue
        field = next((f for name, f in section.model_fields.items() if part in (name, f.alias)), None)
        inner = (
            [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(t, "model_fields")]
            if field
            else []
        )
        if not inner:
            return []
        section = inner[0]
    return [field.alias or name for name, field in section.model_fields.items()]
