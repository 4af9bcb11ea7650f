"""The stage that proves the file: what was measured becomes the report, and images that check it later are chosen.

What belongs here: the report and how it is written. What is measured is `measuring`, what stands beside the numbers
`provenance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.stage import Plan, Stage, StageResult, each_target, named

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context
    from dfqkit.run.measuring import Measured
    from dfqkit_export.report import Finding, Floor, Report
    from dfqkit_export.report.judging import Evidence

#: The report, for programs and for people.
REPORT, PAGE = "report.json", "report.html"


def _run(context: Context) -> StageResult:
    """Measure the file, write the report, and choose the images by which the file is checked later.

    They are chosen here and not at the export, because that is where the images which only judge are used.
    """
    from dfqkit.run.answers_drawn import drawn_answers
    from dfqkit.run.measuring import measure
    from dfqkit.run.sentinel import write_run_sentinel
    from dfqkit_export.files import write_bytes
    from dfqkit_export.report.page import render_html

    report, page = context.file(REPORT), context.file(PAGE)
    made = report_of(context, measure(context, STAGE.name))
    write_bytes(report, made.to_json().encode())
    sheets = drawn_answers(context) | contact_sheets(context.folder.path / "images")
    write_bytes(page, render_html(made, sheets=sheets).encode())
    return StageResult(files=[report.name, page.name, *write_run_sentinel(context)])


def report_of(context: Context, measured: Measured) -> Report:
    """Return the report of a run: what was measured, which floors hold, and what made the file."""
    from dfqkit.run.disclosure import warnings_of
    from dfqkit.run.provenance import candidates, in_float, kept_in_float, provenance, selection, synthesis
    from dfqkit_export.report import Report, check_floors
    from dfqkit_export.report.judging import judge

    recipe, account = context.recipe, measured.account
    floors = floors_about(recipe, measured)
    missed, unknown = steered(recipe, measured)
    broken = [*account.findings, *check_floors(measured.metrics, account.answerable(floors)), *missed]
    judged = judge(evidence_of(context, measured, floors), broken).without(unknown)
    return Report(
        title=recipe.name,
        verdict=judged.verdict,
        metrics=measured.metrics,
        findings=judged.findings,
        floors=floors,
        layers=measured.layers,
        breakdowns=[*candidates(context), *measured.breakdowns],
        precision=account.realised.to_dict() if account.realised else {},
        latency=measured.timing.to_dict() if measured.timing else {},
        provenance=provenance(context, STAGE.name) | in_float(measured.in_float),
        synthesis=synthesis(context),
        selection=selection(context),
        estimate=measured.estimate,
        recipe=recipe.to_yaml(),
        warnings=(*warnings_of(recipe), *account.warnings, *kept_in_float(measured.kept)),
        reasons=judged.reasons,
    )


def floors_about(recipe: Recipe, measured: Measured) -> list[Floor]:
    """Return the floors of a recipe without those that it leaves out itself in view of what was measured."""
    from dfqkit_export.report import Floor

    return [
        Floor(metric=floor.metric, subject=floor.subject, value=floor.value, data=floor.data)
        for floor in recipe.floors
        if (measured.labelled or not floor.needs_labels) and not (floor.unless_kept and measured.as_placed)
    ]


def steered(recipe: Recipe, measured: Measured) -> tuple[list[Finding], list[str]]:
    """Return what breaks `ladder.max_drop` and `validate.min_speedup`, and why it is not known whether something does.

    What is lost is known on labelled images, else from the estimate; without both, images that grade must show it.
    """
    from dfqkit_export.measure.kinds import SPEEDUP, TOP1_DROP
    from dfqkit_export.report import Finding

    found: list[Finding] = []
    least, most = recipe.validation.min_speedup, recipe.ladder.max_drop if recipe.ladder else None
    if least is not None:
        speed = next((metric for metric in measured.metrics if metric.name == SPEEDUP.name), None)
        told = "nothing was timed (latency_repeats is 0, or this machine is not the file's target)"
        if speed is not None and speed.low is not None and speed.high is not None:
            told = f"it is {speed.value:.2f} times as fast as in float [{speed.low:.2f}, {speed.high:.2f}]"
        if speed is None or (speed.high is not None and speed.high < least):
            message = f"validate.min_speedup asks for {least:g}, and {told}."
            value = speed.value if speed else None
            found.append(Finding(metric=SPEEDUP.name, subject="file", value=value, floor=least, message=message))
    if most is None:
        return found, []
    lost = [(each.name, each.value or 0.0, f"on {each.n} images of {each.data}") for each in measured.drops]
    if not lost and measured.estimate.get("trusted"):
        lost = [(TOP1_DROP.name, float(measured.estimate["value"]), "as estimated without labels")]
    for name, value, where in lost:
        if value > most:
            message = f"ladder.max_drop allows {most:g} points, and {value:.2f} are lost {where}."
            found.append(Finding(metric=name, subject="file", value=value, floor=most, message=message))
    why = [
        f"{kept:.1f} % of the answers stay on {each.n} images of {each.data}"
        for each in ([] if lost else measured.seen)
        if (kept := each.agreement if each.kept is None else each.kept) < 100.0 - most
    ]
    if not measured.drops and measured.estimate.get("trusted") and (high := measured.estimate["high"]) > most:
        why.append(f"the estimate of what is lost reaches to {high:.2f} points")
    told = f"That at most {most:g} points are lost (ladder.max_drop) is not shown: without labels,"
    return found, [f"{told} {each}." for each in why]


def evidence_of(context: Context, measured: Measured, floors: Sequence[Floor]) -> Evidence:
    """Return what a run is judged by, beside its floors: that it has none makes no file good."""
    from dfqkit_export.measure.kinds import DROPS, STUDENT_AGREEMENT, STUDENT_KEPT, TOP1
    from dfqkit_export.report.judging import Evidence

    doubts = [*measured.doubts, *(context.synthesis.warnings() if measured.seen else ())]
    if context.teacher.untrained:
        doubts.append("The teacher has random weights: that a file agrees with it says nothing about a trained one.")
    ladder, realised = context.recipe.ladder, measured.account.realised
    asked = [ladder.max_drop] if ladder and ladder.max_drop else []
    share = realised.integer_ops if realised else None
    return Evidence(
        drops=measured.drops,
        teacher=[metric for metric in measured.metrics if (metric.name, metric.subject) == (TOP1.name, "teacher")],
        classes=context.teacher.image.classes,
        same=[m for m in measured.metrics if m.name in (STUDENT_AGREEMENT.name, STUDENT_KEPT.name)],
        seen=measured.seen,
        layers=measured.layers,
        integer=None if share is None else 100.0 * share,
        estimate=measured.estimate,
        allowed=max((*asked, *(floor.value for floor in floors if floor.metric in DROPS)), default=None),
        doubts=doubts,
    )


def require_floors(recipe: Recipe) -> None:
    """Refuse a floor of a metric that nobody knows before any compute is spent; the teacher's task is loaded."""
    from dfqkit_export.errors import RecipeError
    from dfqkit_export.measure.kinds import known_kinds
    from dfqkit_export.words import did_you_mean

    known = {kind.name for kind in known_kinds()}
    for metric in (floor.metric for floor in recipe.floors if floor.metric not in known):
        message = (
            f"Recipe '{recipe.name}' has a floor for '{metric}', which is no metric.{did_you_mean(metric, known)} "
            f"Known: {', '.join(sorted(known))}."
        )
        raise RecipeError(message)


def reports(recipe: Recipe) -> list[str]:
    """Return the names of a run's reports: one for each target."""
    return [named(REPORT, part) for part in STAGE.parts(recipe)]


def contact_sheets(folder: Path) -> dict[str, bytes]:
    """Return one PNG a stored set, by its caption: a row for each group, so that a missing one shows."""
    from dfqkit.images.sheet import SheetForm, contact_sheet, shown
    from dfqkit_export.images.stored import StoredBank
    from dfqkit_export.tasks.answering import grouped

    # Smaller than those of `dfqkit bank sheet`: a page holds several, and they are part of its file.
    form = SheetForm(columns=12, rows=20, most=96, clear=True)
    sheets = {}
    for file in sorted(folder.glob("*.safetensors")):
        images = StoredBank.open(file)
        groups = grouped(images)
        caption = f"{images.source}: {len(images)} images"
        if groups.confidence is not None:
            caption += f", mean teacher confidence {float(groups.confidence.mean()):.2f}"
        if told := shown(images.spec.shape[0]):
            caption += f", {told}"
        empty = int((groups.counts == 0).sum())
        if empty:
            caption += f", {empty} of {groups.count} {groups.many} without any"
        sheets[caption] = contact_sheet(images, form)
    return sheets


def _plan(recipe: Recipe) -> Plan:
    return Plan(text=recipe.validation.data or "synthetic images only")


STAGE = Stage(
    name="validate",
    help="run the ONNX file, measure it, and write the report",
    run=_run,
    plan=_plan,
    parts=each_target,
    apart=False,
)
