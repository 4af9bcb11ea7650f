"""What `dfqkit inspect FILE.onnx` does and prints: facts, the checker's problems, and what runtimes make of the layers.

What belongs here: order, exit codes and layout. The facts themselves are `dfqkit_export`'s, and nothing here needs more
than numpy, onnx and onnxruntime.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import note, result
from dfqkit_export.errors import ArtefactError, DfqkitError
from dfqkit_export.words import page, some, table

if TYPE_CHECKING:
    from dfqkit_export.backends.precision import Realised
    from dfqkit_export.checker import FixResult, Problem
    from dfqkit_export.onnxfile.quantization import QuantFacts
    from dfqkit_export.onnxfile.summary import FileFacts, LayerFacts

_NODES = 3  # named where a rule is broken in many places; --json has all


def inspect_file(path: str, target: str | None, fix: str | None, runtimes: Sequence[str], *, as_json: bool) -> int:
    """Print what an ONNX file is, what is wrong with it for a target, and what runtimes make of it.

    Without a target, it is checked for the one that it says it was made for, or ONNX Runtime; a float file is only
    described. Returns 0, 1 where the checker has errors, or the code of the first runtime that could not be asked.

    Raises:
        ArtefactError: For a float file that a target or repairs are asked of, and for one that takes no images.
    """
    from dfqkit_export.backends import DEFAULT_TARGET, get_backend, get_target
    from dfqkit_export.checker import check_model, fix_file
    from dfqkit_export.images.inputs import entrance
    from dfqkit_export.onnxfile.model import load_onnx, metadata_in, require_images
    from dfqkit_export.onnxfile.summary import file_facts

    for name in runtimes:
        get_backend(name)
    if target is not None:
        get_target(target)
    model = load_onnx(path)
    facts = file_facts(model)
    if "dfqkit.image" in metadata_in(model):
        entrance(model, path)
    elif facts.quantized_as or target or fix or runtimes:  # a float file that is only looked at may leave sizes open
        require_images(model, path)
    chosen = target or facts.metadata.get("dfqkit.target") or DEFAULT_TARGET.name
    quantized = bool(facts.quantized_as)
    realised, failures = _realised(path, runtimes)
    found = _Inspection(
        path=path,
        facts=facts,
        target=chosen,
        problems=check_model(model, chosen).problems if quantized else (),
        fixed=fix_file(path, chosen, fix) if fix and quantized else None,
        realised=realised,
        failures=failures,
    )
    result(json.dumps(found.to_dict(), indent=2) if as_json else page(_text(found)))
    for error in failures.values():
        note(f"error: {error}")
    if not quantized:
        message = (
            f"Model {path!r} has no QuantizeLinear, no DequantizeLinear and no integer operators: nothing in it is "
            f"quantized, so there is nothing to check for target {chosen!r}. `dfqkit quantize {path}` makes an int8 "
            "file of it."
        )
        if target or fix:
            raise ArtefactError(message)
        note(message)
    if failures:
        return next(iter(failures.values())).exit_code
    return int(any(problem.severity == "error" for problem in found.remaining))


@dataclass(frozen=True, kw_only=True)
class _Inspection:
    """Everything that was found out about one file."""

    path: str
    facts: FileFacts
    target: str
    problems: tuple[Problem, ...]
    fixed: FixResult | None
    realised: dict[str, Realised]
    failures: dict[str, DfqkitError]

    @property
    def remaining(self) -> tuple[Problem, ...]:
        """Problems of the repaired file where one was written, else of the file."""
        return self.fixed.remaining if self.fixed else self.problems

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "file": self.path,
            "facts": self.facts.to_dict(),
            "target": self.target,
            "problems": [problem.to_dict() for problem in self.problems],
            "fix": self.fixed.to_dict() if self.fixed else None,
            "precision": {
                name: {**item.to_dict(), "layers": [asdict(layer) for layer in item.layers]}
                for name, item in self.realised.items()
            },
            "unavailable": {name: str(error) for name, error in self.failures.items()},
        }


def _realised(path: str, runtimes: Sequence[str]) -> tuple[dict[str, Realised], dict[str, DfqkitError]]:
    """Return what each runtime did with each layer, and why some could not be asked."""
    from dfqkit_export.backends.opening import realised_precision

    found: dict[str, Realised] = {}
    failed: dict[str, DfqkitError] = {}
    for name in dict.fromkeys(runtimes):
        try:
            found[name] = realised_precision(path, name)
        except DfqkitError as error:
            failed[name] = error
    return found, failed


def _text(found: _Inspection) -> Iterator[str]:
    yield from _frame(found.path, found.facts)
    yield from _layers(found.facts.layers)
    if found.fixed:
        yield ""
        yield from _fix(found.fixed)
    if found.facts.quantized_as:
        yield ""
        yield from _problems(found.fixed.path if found.fixed else found.path, found.target, found.remaining)
    for name, item in found.realised.items():
        yield ""
        yield from _precision(name, item)


def _frame(path: str, facts: FileFacts) -> Iterator[str]:
    versions = [f"opset {facts.opset}", *(f"{name} {version}" for name, version in facts.domains.items())]
    made = {key.removeprefix("dfqkit."): value for key, value in facts.metadata.items() if key.startswith("dfqkit.")}
    rows = [
        ("file", path),
        (
            "format",
            f"{', '.join(versions)}, IR {facts.ir_version}, written by {facts.producer or 'nobody who says so'}",
        ),
        *(("input", text) for text in facts.inputs),
        *(("output", text) for text in facts.outputs),
        ("nodes", f"{facts.nodes}, of them {facts.quantize} QuantizeLinear and {facts.dequantize} DequantizeLinear"),
        *(("quantized", text) for text in facts.quantized_as),
        ("stored", f"{facts.parameters} numbers"),
        *((name, made[name]) for name in ("recipe", "target", "teacher", "synthesizer", "seed") if name in made),
    ]
    yield from table(rows)


def _layers(layers: Sequence[LayerFacts]) -> Iterator[str]:
    """Yield a line for all layers of the same kind."""
    kinds = Counter(
        (layer.op, _weight(layer), f"bias {layer.bias}", f"{_quant(layer.input)} -> {_quant(layer.output)}")
        for layer in layers
    )
    yield ""
    yield f"{len(layers)} layers that compute"
    yield from table([(f"  {count} x", *kind) for kind, count in kinds.items()])


def _weight(layer: LayerFacts) -> str:
    weight = layer.weight
    if weight is None:
        return "no weights"
    if not weight.quantized:
        return f"weights {weight.dtype}"
    zero = "" if weight.zero_point == 0 else f", zero point {weight.zero_point}"
    return f"weights {weight.dtype} {weight.bits} bit {weight.granularity.replace('_', ' ')}{zero}"


def _quant(facts: QuantFacts | None) -> str:
    if facts is None:
        return "float"
    zero = "zero point 0" if facts.zero_point == 0 else "zero point not 0"
    return f"{facts.dtype} {facts.bits} bit {zero}"


def _fix(fixed: FixResult) -> Iterator[str]:
    yield f"wrote {fixed.path} with {len(fixed.applied)} repair{'' if len(fixed.applied) == 1 else 's'}"
    for repaired in fixed.applied:
        yield f"  {repaired.rule}  {repaired.node}: {repaired.change}"
    if fixed.applied:
        same = "no output moved" if fixed.exact else f"outputs moved by at most {fixed.largest_difference:.3g}"
        reason = f" ({fixed.reason})" if fixed.reason else ""
        yield f"  run on {fixed.images} random inputs before and after: {same}{reason}"


def _problems(path: object, target: str, problems: Sequence[Problem]) -> Iterator[str]:
    errors = sum(problem.severity == "error" for problem in problems)
    if not problems:
        yield f"{path} for {target}: nothing to say against it"
        return
    yield f"{path} for {target}: {errors} errors, {len(problems) - errors} warnings"
    by_rule: dict[str, list[Problem]] = {}
    for problem in problems:
        by_rule.setdefault(problem.rule, []).append(problem)
    for rule, found in by_rule.items():
        first = found[0]
        yield f"  {rule} {first.severity}: {f'{first.node}: ' if first.node else ''}{first.message}"
        yield f"    do: {first.repair}{' (--fix does it)' if first.fixable else ''}"
        if len(found) > 1:
            yield f"    also: {some([problem.node for problem in found[1:]], _NODES)}"


def _precision(runtime: str, item: Realised) -> Iterator[str]:
    share = "" if item.integer_macs is None else f", {100 * item.integer_macs:.1f} % of multiply-adds"
    yield f"in {runtime}: {item.integer_layers} of {len(item.layers)} layers in integers{share}"
    yield from table(
        [(f"  {layer.name}", layer.op, layer.precision, layer.executed_as, layer.detail) for layer in item.layers]
    )
