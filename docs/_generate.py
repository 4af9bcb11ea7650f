"""The reference, made from the code while the site is built (a hook of mkdocs): nothing of it is written by hand.

What belongs here: one function for each page under reference/, and what `mkdocs.yml` cannot say: pages of its `nav`
that are not there are left out, and the picture of the estimate comes from where its study wrote it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

#: Modules whose first text says what a file holds, and the class that is it.
FILES = {
    "dfqkit.run.folder": "A run's folder",
    "dfqkit_export.bundle.reading.Bundle": "Bundle, as it is read",
    "dfqkit_export.report.document.Report": "report.json",
    "dfqkit_export.gate.baseline.Baseline": "dfqkit-baseline.json",
    "dfqkit_export.gate.baseline.Case": "A case of the baseline",
    "dfqkit_export.sentinel.file.Sentinel": "sentinel.safetensors",
    "dfqkit_export.images.stored.StoredBank": "Image sets (banks)",
    "dfqkit.records.file.ActivationRecords": "Activation records",
}


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is in no folder and made by nothing here."""
    sys.path[:0] = [str(ROOT), str(ROOT / "export")]
    config.nav = [entry for entry in (_there(entry) for entry in config.nav) if entry]
    return config


def _there(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: [inner for inner in map(_there, pages) if inner] for title, pages in entry.items()}
    return entry if entry in PAGES or (ROOT / "docs" / entry).is_file() else None


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from the code."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    picture = (ROOT / "recipes" / "estimate" / "estimate.svg").read_bytes()
    files.append(File.generated(config, "assets/estimate.svg", content=picture))
    return files


def commands() -> str:
    """Return the help of every command, word for word."""
    from dfqkit.cli import command_line
    from dfqkit.cli.outcome import EXIT_CODES

    lines = ["# Commands", "", "What `dfqkit COMMAND --help` prints.", "", "```text", EXIT_CODES.strip(), "```", ""]
    for name, parser in _parsers(command_line()):
        lines += [f"## {name}", "", "```text", parser.format_help().strip(), "```", ""]
    return "\n".join(lines)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                below = list(_parsers(inner))
                yield from below or [(inner.prog, inner)]


def recipe() -> str:
    """Return every key of a recipe with what it may hold, its default and its meaning."""
    from dfqkit.config.schema import recipe_schema

    schema = recipe_schema()
    lines = [
        "# Recipes",
        "",
        "Every key, from the schema that `dfqkit recipe schema` prints. Methods have a page of their own.",
        "",
    ]
    for name, section in schema["properties"].items():
        lines += [f"## {name}", "", section.get("description", ""), ""]
        fields = _fields(section, schema)
        lines += _table(fields, schema) if fields and name != "synthesis" else [f"`{_kind(section, schema)}`", ""]
    return "\n".join(lines)


def synthesizers() -> str:
    """Return the section of every method."""
    from dfqkit.config.registry import synthesizer_configs
    from dfqkit.config.schema import recipe_schema

    schema = recipe_schema()
    lines = ["# Synthesizers", "", "Their section of a recipe, `synthesis`, by `method`.", ""]
    for name, config in synthesizer_configs().items():
        needs = ", ".join(sorted(config.needs)) or "nothing"
        lines += [f"## {name}", "", f"{config.summary()} Needs of the teacher: {needs}.", ""]
        lines += _table(config.model_json_schema().get("properties", {}), schema)
    return "\n".join(lines)


def _fields(section: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for part in [section, *section.get("anyOf", []), *section.get("allOf", [])]:
        if "$ref" in part:
            return dict(schema["$defs"][part["$ref"].rpartition("/")[2]].get("properties", {}))
    return dict(section.get("properties", {}))


def _table(fields: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    rows = ["| key | takes | default | what |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        default = f"`{field['default']}`" if "default" in field else "needed"
        what = " ".join(field.get("description", "").split())
        rows.append(" | ".join(["", f"`{name}`", _cell(_kind(field, schema)), _cell(default), _cell(what), ""]).strip())
    return [*rows, ""]


def _kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    for word in ("anyOf", "oneOf"):
        if word in field:
            return " or ".join(dict.fromkeys(_kind(part, schema) for part in field[word]))
    if "const" in field:
        return str(field["const"])
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    words = [str(field.get("type", "any")), *(f"{said} {field[key]}" for key, said in bounds.items() if key in field)]
    return " ".join(words)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{{", "{ {")


def targets() -> str:
    """Return the table of every target, each cell with its source."""
    from dfqkit_export.backends import all_targets
    from dfqkit_export.backends.target_text import render_target

    lines = [
        "# Targets",
        "",
        "What `dfqkit list targets NAME` prints: what each runtime takes, every cell with its source.",
        "",
    ]
    for name, target in all_targets().items():
        lines += [f"## {name}", "", "```text", render_target(target), "```", ""]
    return "\n".join(lines)


def rules() -> str:
    """Return all rules of the checker, by target."""
    from dfqkit_export.backends import all_targets
    from dfqkit_export.checker.check import rules_for

    found: dict[str, tuple[Any, list[str]]] = {}
    for name in all_targets():
        for rule in rules_for(name):
            found.setdefault(rule.id, (rule, []))[1].append(name)
    lines = [
        "# Rules of the checker",
        "",
        f"`dfqkit inspect FILE --target NAME` applies those of a target; {len(found)} in all.",
        "",
    ]
    lines += [
        "| rule | severity | what it wants | repair | `--fix` | targets |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for rule, names in found.values():
        where = "all" if len(names) == len(all_targets()) else ", ".join(names)
        fix = "yes" if rule.fixable or rule.mend else ""
        cells = [rule.id, rule.severity, rule.title, rule.repair, fix, where]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, ""])


def metrics() -> str:
    """Return the table of all metrics."""
    from dfqkit_export.measure.kinds import KINDS

    better = {True: "higher", False: "lower", None: "neither"}
    lines = ["# Metrics", "", "As reports, floors and baselines name them.", ""]
    lines += ["| name | title | unit | better | tolerance of the gate |", "| --- | --- | --- | --- | --- |"]
    for kind in KINDS.values():
        parts = [f"{kind.tolerance.absolute:g}"] if kind.tolerance.absolute or not kind.tolerance.relative else []
        parts += [f"{kind.tolerance.relative:.0%} of the recorded value"] if kind.tolerance.relative else []
        cells = [
            f"`{kind.name}`",
            kind.title,
            kind.unit,
            better[kind.higher_is_better],
            " + ".join(parts) if kind.gated else "none",
        ]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, ""])


def files() -> str:
    """Return what each file holds, by the class that is it."""
    lines = [
        "# Files",
        "",
        "What a run leaves is drawn in the [architecture](../architecture.md#what-a-run-leaves).",
        "",
    ]
    for name, title in FILES.items():
        lines += [
            f"## {title}",
            "",
            f"::: {name}",
            "    options: {show_root_heading: false, heading_level: 4, members: false}",
            "",
        ]
    return "\n".join(lines)


def python() -> str:
    """Return the public names of both packages."""
    import dfqkit
    import dfqkit_export

    lines = ["# Python", ""]
    for package in (dfqkit, dfqkit_export):
        lines += [f"## {package.__name__}", ""]
        lines += [f"::: {package.__name__}.{name}\n" for name in package.__all__ if name != "__version__"]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    f"reference/{make.__name__}.md": make
    for make in (commands, recipe, synthesizers, targets, rules, metrics, files, python)
}
