"""What commands that compute share: beginning a run, opening one, doing its stages, and showing its report."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit.cli.options import document, note, result, spelled, starting
from dfqkit.cli.outcome import resumable
from dfqkit.progress import PULSE, first_process
from dfqkit.run.export import MODEL
from dfqkit.run.stage import each_target, named
from dfqkit.run.stages import STAGES, plan
from dfqkit.run.validate import REPORT, reports, require_floors
from dfqkit_export.errors import ArtefactError, DfqkitError, RecipeError

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.folder import RunFolder
    from dfqkit.teacher.load import Teacher
    from dfqkit_export.report import Report

#: Seconds of a run before which somebody at a terminal is asked.
_LONG = 1800.0
_TRIED = 16  # images that show whether a data set has the right form


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """Load the recipe that the arguments `recipe`, `overrides` and `seed` describe."""
    recipe = read_recipe(args, args.recipe, args.overrides)
    return recipe if args.seed is None else recipe.with_seed(args.seed)


def read_recipe(args: argparse.Namespace, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe, and refuse it where `--untrusted` is given and it asks for more than is harmless."""
    from dfqkit.config.reading import load_recipe

    recipe = load_recipe(name, overrides)
    if getattr(args, "untrusted", False):
        from dfqkit.config.untrusted import require_harmless

        require_harmless(recipe)
    return recipe


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run to be worked on, and its teacher where that was loaded already."""

    folder: RunFolder
    recipe: Recipe
    teacher: Teacher | None = None


def begin(
    args: argparse.Namespace,
    recipe: Recipe,
    *,
    validates: bool,
    teacher: Teacher | None = None,
    command: Sequence[str] = (),
) -> Work:
    """Make the folder of a run, or continue the same run where it is there already.

    What the recipe names is tried first, the images that validate where they are needed: a run that could not end
    leaves no folder, which would be in the way of the next attempt, and spends no compute. ``teacher`` is the recipe's
    where it is loaded, and ``command`` what reproduces the run where that is not `dfqkit run`.
    """
    import torch

    from dfqkit.run.context import resolve_device, teacher_of
    from dfqkit.run.execution import run_facts
    from dfqkit.run.folder import RunFolder
    from dfqkit.run.manifest import MANIFEST
    from dfqkit.training.ranks import Ranks

    ranks = Ranks.joined(args.device or "auto")
    if threads := args.threads or (1 if args.cluster else None):
        torch.set_num_threads(threads)
    if not ranks.first:
        ranks.wait()
        return Work(folder=RunFolder.open(args.out), recipe=recipe, teacher=teacher)
    facts = {
        **run_facts(recipe),
        "device": str(resolve_device(args.device or "auto")),
        "seed": recipe.seed,
        # What reproduces the run, without where its files go and how it is shown.
        "command": shlex.join(command or ["dfqkit", "run", str(args.recipe), *spelled(args, "overrides", "seed")]),
    }
    out = Path(args.out) if args.out else _default_folder(recipe)
    if not (out / MANIFEST).exists():
        teacher = teacher or teacher_of(recipe)
        require_possible(recipe, teacher, validates=validates)
        args.expected = announce(args, recipe, teacher)
    folder = RunFolder.create(out, recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts=facts)
    ranks.wait()
    return Work(folder=folder, recipe=recipe, teacher=teacher)


def require_possible(recipe: Recipe, teacher: Teacher, *, validates: bool) -> None:
    """Refuse a run that could not end: its source of images, its floors, and the images that validate are tried."""
    from dfqkit.run.answering import real_images, require_labels
    from dfqkit.run.context import resolved_synthesis

    resolved_synthesis(recipe)
    require_floors(recipe)
    if validates:
        require_labels(teacher, real_images(recipe, limit=_TRIED))


def announce(args: argparse.Namespace, recipe: Recipe, teacher: Teacher | None) -> dict[str, float] | None:
    """Say what a run takes before it begins, and ask at a terminal where that is long; return its seconds by stage.

    Where a run that is not seen by anybody is asked for (`--quiet`), nothing is timed.
    """
    from dfqkit.run.forecast import forecast

    if args.quiet or not first_process():
        return None
    PULSE.doing = lambda: "timing one round, which tells what the run takes"
    told = forecast(recipe, teacher, args.device or "auto")
    PULSE.doing = lambda: "after the plan"
    for line in told.lines():
        note(line)
    if args.dry_run:
        return told.seconds
    if told.total > _LONG and not args.yes and sys.stdin.isatty() and sys.stderr.isatty():
        note("Begin? [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            message = "Not begun. Give --yes to begin without being asked, or what is cheaper."
            raise RecipeError(message)
    return told.seconds


def only_planned(args: argparse.Namespace, recipe: Recipe, teacher: Teacher | None = None) -> int:
    """Print the plan, and time one round where the machine has what that takes.

    With the recipe's ``teacher``, where it is loaded already, what else the recipe names is tried as before a run.
    """
    if teacher is not None:
        require_possible(recipe, teacher, validates=True)
    if not args.json:
        result(plan(recipe), verbatim=True)
    seconds = None
    try:
        if teacher is None:
            starting(args)
        seconds = announce(args, recipe, teacher)
    except (DfqkitError, ModuleNotFoundError) as error:
        note(f"How long it takes cannot be said here: {error}")
    if args.json:
        stages = {name: stage.plan(recipe).text for name, stage in STAGES.items()}
        result(
            document({"stages": stages, "seconds": seconds, "recipe": recipe.model_dump(mode="json", by_alias=True)})
        )
    return 0


def reopen(path: str) -> Work:
    """Open a run's folder and the recipe in it, which must be the one that it began with."""
    from dfqkit.run.context import recipe_of
    from dfqkit.run.folder import RunFolder

    folder = RunFolder.open(path)
    recipe = recipe_of(folder)
    if recipe.digest() != folder.digest:
        message = (
            f"'{folder.path / 'recipe.yaml'}' is not the recipe that this run began with (sha256 {folder.digest[:12]}, "
            f"now {recipe.digest()[:12]}). Put it back, or begin another run with `dfqkit run RECIPE --out DIR`."
        )
        raise ArtefactError(message)
    return Work(folder=folder, recipe=recipe)


def carry_out(work: Work, stages: Iterable[str], args: argparse.Namespace, *, resume: str) -> None:
    """Do those stages of a run that are not complete; ``resume`` is the command that continues after an interrupt.

    The device and the threads are those that it began with where the arguments do not say others.
    """
    from dfqkit.progress import Progress
    from dfqkit.run import execution
    from dfqkit.run.ray_parts import executor
    from dfqkit.run.stages import require_earlier

    stages, progress = list(stages), Progress(quiet=args.quiet)
    if getattr(args, "expected", None):
        progress.expect(args.expected)
    with resumable(resume), work.folder if first_process() else contextlib.nullcontext():
        if first_process():
            require_earlier(work.folder, work.recipe, stages[0])
        execution.execute(
            work.folder,
            work.recipe,
            stages,
            device=_settle(work.folder, args),
            progress=progress,
            teacher=work.teacher,
            executor=executor(args.cluster, args.workers),
        )


def report_in(path: Path) -> Path:
    """Return the file of a report, which may be given itself or by the folder of a run, a bundle, or any other."""
    if not path.is_dir():
        return path
    others = sorted(other.name for other in path.glob("report.*.json"))
    if others:
        message = (
            f"'{path}' is a run for several targets: it has {', '.join([REPORT, *others])}. Give one of these files."
        )
        raise ArtefactError(message)
    return path / REPORT


def read_report(path: Path) -> Report:
    """Read the file of a report."""
    from dfqkit_export.report import Report

    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ArtefactError) as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error).rstrip(".")
        begun = (path.parent / "recipe.yaml").is_file()
        repair = f"; `dfqkit run --resume {path.parent}` makes that of this run" if begun else ""
        message = f"Cannot read '{path}': {reason}. Give a {REPORT} or the folder that holds it{repair}."
        raise ArtefactError(message) from error


def show_reports(work: Work, started: float, args: argparse.Namespace) -> int:
    """Print a run's reports, in five lines each where nobody asks for more; return the exit code of the verdict."""
    from dfqkit_export.report.summary import summary
    from dfqkit_export.report.text import render_text
    from dfqkit_export.report.verdict import exit_code, overall
    from dfqkit_export.words import page

    found = [read_report(work.folder.path / name) for name in reports(work.recipe)]
    if args.json:
        documents = [json.loads(report.to_json()) for report in found]
        result(json.dumps(documents[0], indent=2) if len(documents) == 1 else document({"reports": documents}))
    else:
        names = [named(MODEL, part) for part in each_target(work.recipe)]
        place = str(work.folder.path)
        texts = [page(summary(report, place, name)) for report, name in zip(found, names, strict=True)]
        result("\n\n".join(render_text(report).rstrip() for report in found) if args.verbose else "\n\n".join(texts))
    verdict = overall(report.verdict for report in found)
    ending(verdict, started, work.folder.path)
    return exit_code(verdict)


def ending(verdict: str, started: float, folder: Path) -> None:
    """Write the last line: how it ended, how long it took, and where it is."""
    note(f"{verdict} | {time.monotonic() - started:.0f} s | {folder}")


def _settle(folder: RunFolder, args: argparse.Namespace) -> str:
    """Set the number of threads and return the device; sums depend on both, so a run keeps those it began with."""
    import torch

    facts = folder.run_facts()
    begun = str(facts.get("device", "cpu"))
    if args.device not in (None, "auto", begun):
        message = (
            f"This run began on {begun} and cannot continue on {args.device}: random numbers differ between the two. "
            f"Leave --device out, or begin another run with --out."
        )
        raise ArtefactError(message)
    threads = args.threads or facts.get("threads")
    if threads != facts.get("threads", threads):
        note(
            f"This run began with threads {facts['threads']}, not {threads}: its result may differ in the last digits."
        )
    if threads:
        torch.set_num_threads(int(threads))
    return begun


def _default_folder(recipe: Recipe) -> Path:
    # The name is a user's text: it must not lead out of runs/.
    parts = [re.sub(r"[^\w.-]+", "-", part) for part in recipe.name.split("/") if part.strip(". ")]
    return Path("runs", *parts, f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.digest()[:8]}")
