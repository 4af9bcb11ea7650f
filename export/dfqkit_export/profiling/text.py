"""A profile in words.

What belongs here: text for people. What was measured is `files`'s.
"""

from __future__ import annotations

from dfqkit_export.measure.latency import Timing
from dfqkit_export.profiling.files import FLOAT, INT8, Profile
from dfqkit_export.profiling.node_times import time_by_kind
from dfqkit_export.words import page, table

_SLOWEST = 5


def render_profile(found: Profile) -> str:
    """Return the profile as text: sizes, timings, where the time goes, warnings."""
    latency = next(iter(found.latencies.values()))
    threads = "the runtime's own number of threads" if found.threads is None else f"{found.threads} thread(s)"
    lines = [
        f"int8   {found.path}  {_size(found.bytes)}",
        f"float  {found.against}  {_size(found.float_bytes)}  ({found.float_bytes / found.bytes:.2f}x)",
        f"batch {latency.batch}, {threads}, {latency.repeats} calls of each in turns after {latency.warmup} of warm-up",
        "",
    ]
    rows = [("runtime", "float ms (p10-p90)", "int8 ms (p10-p90)", "speed-up")]
    for name, timed in found.latencies.items():
        base, quantized = timed.timings[FLOAT], timed.timings[INT8]
        ratio = "-" if quantized.ratio is None else f"{quantized.ratio:.2f}x"
        rows.append((name, _spread(base), _spread(quantized), ratio))
    lines += table(rows)
    lines += _nodes(found)
    if found.warnings:
        lines += ["", *(f"warning: {warning}" for warning in found.warnings), *_costs(found)]
    return page(lines)


def _nodes(found: Profile) -> list[str]:
    total = sum(node.ms for node in found.nodes)
    if not total:
        return []
    kinds = [f"{kind} {100 * ms / total:.0f} %" for kind, ms in time_by_kind(found.nodes).items()]
    slowest = [f"  {node.ms:.3f} ms  {100 * node.ms / total:4.1f} %  {node.op} {node.name}" for node in found.nodes]
    return ["", f"int8's time in onnxruntime, by its own profile: {', '.join(kinds)}", *slowest[:_SLOWEST]]


def _costs(found: Profile) -> list[str]:
    if not found.costs:
        return []
    share = sum(cost.share for cost in found.costs)
    lines = [f"Operators on floats and Q/DQ take {100 * share:.0f} % of its time in onnxruntime, the slowest:"]
    return lines + [
        f"  {100 * cost.share:4.1f} %  {cost.op} {cost.name}{': ' if cost.reason else ''}{cost.reason}"
        for cost in found.costs[:_SLOWEST]
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.3f} MB"


def _spread(timing: Timing) -> str:
    return f"{timing.median:.3f} ({timing.p10:.3f}-{timing.p90:.3f})"
