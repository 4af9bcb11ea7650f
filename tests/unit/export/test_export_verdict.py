"""The verdict: its three states, what labelled images and others let one say, and what the gate makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfqkit.cli import main
from dfqkit_export.gate import (
    Baseline,
    Case,
    Options,
    check_case,
    check_path,
    conclude,
    measure_report,
    render_json,
    render_junit,
    render_text,
)
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import STUDENT_AGREEMENT, STUDENT_KEPT, TOP1, TOP1_DROP
from dfqkit_export.report import Finding, LayerRow, Report
from dfqkit_export.report.evidence import Seen, seen
from dfqkit_export.report.judging import BROKEN, LEAST_IMAGES, OK_DB, OK_FIRM, Evidence, judge
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK, exit_code, overall
from dfqkit_export.tasks import DEFAULT_NAME, task_names
from dfqkit_export.tasks.classification import LOGITS, Classification, paired_drop
from dfqkit_export.tasks.lookup import task_class
from dfqkit_export.tasks.segmentation import Segmentation
from tests._faults import inject
from tests._gate_toy import make_bundle

SPEC = ImageSpec(shape=(1, 2, 2), mean=(0.5,), std=(0.5,), classes=10)
GOOD = Seen(
    data="synthetic:dfq", n=128, agreement=97.0, firm_agreement=100.0, signal_db=30.0, groups=10, largest=15.0,
    count=10, confidence=0.8, classes=True,
)  # fmt: skip
BAD = replace(GOOD, agreement=60.0, firm_agreement=70.0, signal_db=2.0)


def drop(lost: int, gained: int = 0, n: int = 1000) -> Any:
    labels = np.zeros(n, int)
    right = np.eye(10)[labels]
    reference, file = right.copy(), right.copy()
    file[:lost] = np.roll(right[:lost], 1, axis=1)
    reference[n - gained :] = np.roll(right[n - gained :], 1, axis=1)
    return paired_drop(reference, file, labels, subject="file", data="real:test")


def test_one_that_was_not_judged_is_neither_good_nor_an_error() -> None:
    assert [overall(each) for each in ([], [OK, NOT_JUDGED], [NOT_JUDGED, FAILED])] == [OK, NOT_JUDGED, FAILED]
    assert [exit_code(each) for each in (OK, FAILED, NOT_JUDGED)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("drops", "allowed", "verdict"),
    [
        ([drop(0)], None, OK),
        ([drop(9)], None, OK),
        ([drop(60)], None, FAILED),
        ([drop(30)], None, FAILED),
        ([drop(30)], 4.0, OK),
        ([drop(80)], 20.0, FAILED),  # no floor makes a broken file good
        ([drop(2, n=20)], None, NOT_JUDGED),
        ([drop(9), drop(60)], None, FAILED),
    ],
)
def test_labelled_images_decide_by_their_interval(drops: list[Any], allowed: float | None, verdict: str) -> None:
    judged = judge(Evidence(drops=drops, allowed=allowed))
    assert judged.verdict == verdict
    assert judged.reasons or judged.findings


def test_labelled_images_count_more_than_others() -> None:
    assert judge(Evidence(drops=[drop(0)], seen=[BAD])).verdict == OK
    assert judge(Evidence(drops=[drop(60)], seen=[GOOD])).verdict == FAILED


@pytest.mark.parametrize(("right", "verdict"), [(10.0, NOT_JUDGED), (18.0, NOT_JUDGED), (20.0, OK), (90.0, OK)])
def test_a_teacher_that_guesses_proves_nothing(right: float, verdict: str) -> None:
    own = TOP1.metric(subject="teacher", data="real:test", value=right, n=1000)
    judged = judge(Evidence(drops=[drop(0)], teacher=[own], classes=10, seen=[GOOD]))
    assert judged.verdict == verdict
    assert judge(Evidence(drops=[drop(0)], teacher=[own], classes=0)).verdict == OK


def test_few_labelled_images_leave_it_to_others_unless_some_were_lost() -> None:
    assert judge(Evidence(drops=[drop(0, n=20)], seen=[GOOD])).verdict == OK
    assert judge(Evidence(drops=[drop(0, n=20)], seen=[BAD])).verdict == FAILED
    assert judge(Evidence(drops=[drop(2, n=20)], seen=[GOOD])).verdict == NOT_JUDGED


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ((), "grading"),
        ((replace(GOOD, n=LEAST_IMAGES - 1),), "too few"),
        ((replace(GOOD, largest=95.0),), "one answer"),
        ((replace(GOOD, groups=1, largest=100.0),), "one answer"),
        ((replace(GOOD, confidence=0.12),), "chance"),
        ((replace(GOOD, signal_db=OK_DB - 0.1),), "only labelled images"),
        ((replace(GOOD, firm_agreement=OK_FIRM - 0.1),), "only labelled images"),
        ((GOOD, replace(BAD, n=3)), "too few"),
    ],
)
def test_what_images_cannot_tell_is_not_judged(shown: tuple[Seen, ...], words: str) -> None:
    judged = judge(Evidence(seen=shown))
    assert (judged.verdict, judged.findings) == (NOT_JUDGED, ())
    assert words in judged.reasons[0]


@pytest.mark.parametrize("spoilt", [0, 1])
def test_scenes_without_text_show_nothing_whatever_the_file_makes_of_them(spoilt: int) -> None:
    """A student's letter that the file lacks is all that is kept there, and no other file."""
    rng = np.random.default_rng(0)
    task = Segmentation(shape=(1, 16, 16), scores="probabilities")
    teacher = {"mask": rng.uniform(0, 0.3, (32, 1, 16, 16))}
    for place in range(2 if spoilt else 6):  # one in ten or so
        teacher["mask"][place, 0, 3, 3:6] = 0.6
    file = {"mask": teacher["mask"] + rng.normal(0, 0.002, teacher["mask"].shape)}
    file["mask"][:6, 0, 3, 3:6] -= 0.2 * spoilt
    same = task.beside(teacher, file, None, subject="x", data="d")
    assert (min(metric.value or 0.0 for metric in same) < 90) == bool(spoilt)
    shown = seen(task, SPEC, teacher, file, data="d")
    assert shown.kept == (0 if spoilt else 100)
    judged = judge(Evidence(seen=[shown], same=same))
    assert judged.verdict == NOT_JUDGED
    assert f"something in {2 if spoilt else 6} of the 32 images of d" in judged.reasons[0]
    texts = judge(Evidence(seen=[replace(shown, empty=50.0)], same=same))
    assert texts.verdict == (FAILED if spoilt else OK)


def test_the_documentation_tells_the_limits_of_every_task() -> None:
    text = (Path(__file__).parents[3] / "docs" / "concepts" / "verdict.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `") and " dB" in line]
    told = {row[0].strip("`"): row[-2:] for row in rows}
    for name in task_names():
        if name == DEFAULT_NAME:
            continue  # it has limits of its own (judging)
        limits = task_class(name).limits
        wanted = [f"{limits.ok:g} %, {limits.ok_db:g} dB", f"{limits.failed:g} %, {limits.failed_db:g} dB"]
        assert told[name] == wanted, name


def test_images_that_tell_give_a_verdict() -> None:
    assert judge(Evidence(seen=[GOOD])).verdict == OK
    assert judge(Evidence(seen=[replace(GOOD, signal_db=None)])).verdict == OK
    failed = judge(Evidence(seen=[BAD, GOOD]))
    assert failed.verdict == FAILED
    assert "70.0 %" in failed.findings[0].message


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({"doubts": ["The teacher has random weights."]}, NOT_JUDGED),
        ({"layers": [LayerRow(name="a", op="Conv", sqnr_student_db=-0.1)]}, NOT_JUDGED),
        ({"layers": [LayerRow(name="a", op="Conv", sqnr_student_db=0.1), LayerRow(name="b", op="Add")]}, OK),
        ({"estimate": {"trusted": True, "low": 0.1, "high": BROKEN}}, NOT_JUDGED),
        ({"estimate": {"trusted": True, "low": BROKEN, "high": 9.0}}, FAILED),
        ({"estimate": {"trusted": False, "low": None, "high": None}}, OK),
        ({"integer": 0.0}, FAILED),
        ({"integer": 50.0}, OK),
        ({"same": [STUDENT_AGREEMENT.metric(subject="x", data="d", value=50.0, n=100)]}, FAILED),
        ({"same": [STUDENT_AGREEMENT.metric(subject="x", data="d", value=99.0, n=100)]}, OK),
        (
            {
                "same": [
                    kind.metric(subject="x", data="d", value=value, n=100)
                    for kind, value in ((STUDENT_AGREEMENT, 50.0), (STUDENT_KEPT, 99.0))
                ]
            },
            OK,
        ),
        (
            {
                "same": [
                    kind.metric(subject="x", data="d", value=value, n=100)
                    for kind, value in ((STUDENT_AGREEMENT, 99.0), (STUDENT_KEPT, 50.0))
                ]
            },
            FAILED,
        ),
    ],
)
def test_what_else_was_measured_is_heard(more: dict[str, Any], verdict: str) -> None:
    assert judge(Evidence(seen=[GOOD], **more)).verdict == verdict


@pytest.mark.parametrize(
    ("of_student", "of_teacher", "verdict"),
    [
        (76.0, 45.0, NOT_JUDGED),  # the student loses most of it, too: these images decide nothing
        (76.0, 60.0, FAILED),
        (50.0, 45.0, FAILED),  # as far from its student as from the teacher: another file
    ],
)
def test_ties_of_undecided_answers_make_no_other_file(of_student: float, of_teacher: float, verdict: str) -> None:
    seen = replace(GOOD, classes=False, kept=of_teacher, agreement=of_teacher)
    same = [STUDENT_KEPT.metric(subject="x", data=GOOD.data, value=of_student, n=100)]
    assert judge(Evidence(seen=[seen], same=same)).verdict == verdict


def test_floors_stand_on_top() -> None:
    finding = Finding(metric=TOP1_DROP.name, subject="s", value=1.0, floor=0.5, message="It is beyond its floor.")
    assert judge(Evidence(drops=[drop(0)]), [finding]).findings == (finding,)
    assert judge(Evidence(), [finding]).verdict == FAILED


def test_the_signal_is_what_differs_from_image_to_image() -> None:
    rng = np.random.default_rng(0)
    task, varied = Classification(), rng.normal(size=(64, 10)) * 3
    fixed = 50 * np.eye(10)[np.full(64, 4)] + 0.01 * varied
    noise = rng.normal(size=(64, 10)) * 0.1
    for logits, low in ((varied, 25.0), (fixed, -15.0)):
        found = seen(task, SPEC, {LOGITS: logits}, {LOGITS: logits + noise}, data="d")
        assert found.signal_db is not None
        assert low < found.signal_db < low + 10
    assert (found.groups, found.largest, found.agreement) == (1, 100.0, 100.0)
    same = seen(task, SPEC, {LOGITS: varied}, {LOGITS: varied}, data="d")
    assert (same.signal_db, same.firm_agreement) == (None, 100.0)


UNJUDGED = Report(title="mine", verdict="not judged", reasons=["No image graded it."])


def test_the_gate_fails_what_is_not_judged_unless_it_is_allowed_and_never_calls_it_ok() -> None:
    case = Case(metrics={})
    strict = check_case(measure_report(UNJUDGED), case)
    allowed = check_case(measure_report(UNJUDGED), case, Options(allow_not_judged=True))
    assert [conclude([each], Baseline()).exit_code for each in (strict, allowed)] == [1, 0]
    outcome = conclude([allowed], Baseline())
    assert json.loads(render_json(outcome))["verdict"] == NOT_JUDGED
    text = render_text(outcome)
    assert "No image graded it." in text
    assert "not judged" in text.splitlines()[0]
    assert "not judged" in text.splitlines()[-1]
    assert "ok:" not in text
    assert b"<skipped" in render_junit(outcome)
    assert b"<failure" in render_junit(conclude([strict], Baseline()))


def test_an_update_records_it_with_a_reason_alone_which_is_shown_from_then_on() -> None:
    assert check_case(measure_report(UNJUDGED), None, Options(update=True)).entry is None
    assert check_case(measure_report(UNJUDGED), None, Options(update=True, allow_not_judged=True)).entry is not None
    taken = check_case(measure_report(UNJUDGED), None, Options(update=True, reason="a demonstration"))
    assert taken.entry is not None
    assert (taken.entry.verdict, taken.entry.reason) == (NOT_JUDGED, "a demonstration")
    later = check_case(measure_report(UNJUDGED), Case.from_dict(taken.entry.to_dict()))
    assert not later.failed()
    assert any("a demonstration" in note for note in later.notes)
    good = check_case(measure_report(replace(UNJUDGED, verdict="ok")), taken.entry, Options(update=True))
    assert good.entry is not None
    assert (good.entry.verdict, good.entry.reason) == (OK, "")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("verdict") / "good")


def test_a_file_that_was_broken_from_the_first_day_on_is_not_recorded(bundle: Path, tmp_path: Path) -> None:
    assert check_path(bundle, Baseline(), Options(update=True)).entry is not None
    inject("bias_dropped", bundle, tmp_path / "broken")
    refused = check_path(tmp_path / "broken", Baseline(), Options(update=True))
    assert refused.entry is None
    assert refused.rows[0].metric == "verdict"
    taken = check_path(tmp_path / "broken", Baseline(), Options(update=True, reason="to see it fail"))
    assert taken.entry is not None
    assert not check_path(tmp_path / "broken", Baseline(cases={"toy": taken.entry})).failed()
    # A reason is for the verdict that it was given for, and an update of another file needs one of its own.
    for case, options in (
        (replace(taken.entry, verdict="", reason=""), Options()),
        (replace(taken.entry, files={"model": "another"}), Options(update=True)),
    ):
        again = check_path(tmp_path / "broken", Baseline(cases={"toy": case}), options)
        assert again.failed()
        assert again.entry is None


def test_the_command_takes_reasons_with_an_update_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(replace(UNJUDGED, metrics=[TOP1.metric(subject="file", data="d", value=90.0, n=10)]).to_json())
    baseline = str(tmp_path / "b.json")
    assert main(["check", str(path), "--baseline", baseline, "--reason", "r"]) == 2
    assert main(["check", str(path), "--baseline", baseline, "--update"]) == 1
    assert main(["check", str(path), "--baseline", baseline, "--update", "--reason", "r"]) == 0
    assert main(["check", str(path), "--baseline", baseline]) == 0
    assert "'not judged': r" in capsys.readouterr().out
    path.write_text(UNJUDGED.to_json())
    assert main(["check", str(path), "--baseline", baseline]) == 2
    assert "no metrics" in capsys.readouterr().out


def test_a_foreign_file_is_judged_against_its_teacher(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests._gate_toy import SPEC as TOY
    from tests._gate_toy import _coloured_digits, _write_teacher

    codes, labels = _coloured_digits()
    teacher = tmp_path / "teacher.onnx"
    _write_teacher(teacher, codes[:900], labels[:900])
    images = tmp_path / "images.npz"
    np.savez(images, images=TOY.normalize(codes[900:].astype(np.float32) / np.float32(255)))
    inject("scale_halved", bundle, tmp_path / "broken")
    command = ["compare", "--teacher", str(teacher), "--json", "--limit", "500"]

    def said(file: Path, *more: str) -> tuple[int, str]:
        code = main([*command, str(file), *more])
        return code, json.loads(capsys.readouterr().out)["verdict"]

    assert said(bundle / "model.onnx", "--images", str(images)) == (0, OK)
    assert said(bundle / "model.onnx") == (1, NOT_JUDGED)  # on random numbers
    assert said(bundle / "model.onnx", "--allow-not-judged") == (0, NOT_JUDGED)
    code, verdict = said(tmp_path / "broken" / "model.onnx", "--images", str(images))
    assert code == 1
    assert verdict != OK
    np.savez(images, images=TOY.normalize(codes[900:].astype(np.float32) / np.float32(255)), labels=labels[900:])
    assert said(bundle / "model.onnx", "--images", str(images)) == (0, OK)
    assert main([*command[:3], str(bundle / "model.onnx"), "--images", str(images)]) == 0
    assert "labelled images" in capsys.readouterr().out.splitlines()[-1]
