"""The limits of verdicts against the files of known drop that they were set between (recipes/verdict)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfqkit_export.report.judging import BROKEN, FAILED_DB, FAILED_FIRM, GOOD, OK_DB, OK_FIRM
from dfqkit_export.report.verdict import FAILED, OK, VERDICTS
from tests.benchmarks.verdicts import OUT, key_of, lines_of, page, wrong

Line = dict[str, Any]


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    found: list[Line] = json.loads((OUT / "verdicts.json").read_text(encoding="utf-8"))
    return found


def test_no_broken_file_is_ok_and_no_good_one_failed(lines: list[Line]) -> None:
    broken, good = ([line for line in lines if test(line["drop"])] for test in (BROKEN.__le__, GOOD.__gt__))
    assert len({line["name"] for line in broken}) >= 30
    assert len([line for line in good if line["kind"] == "good"]) >= 60
    for place in ("run", "check", "alone"):
        assert [key_of(line) for line in broken if line[place] == OK] == []
    for place in ("run", "alone"):
        assert [key_of(line) for line in good if line[place] == FAILED] == []
    assert [key_of(line) for line in good if line["kind"] == "good" and line["check"] == FAILED] == []
    assert wrong(lines) == []


def test_the_limits_lie_between_them(lines: list[Line]) -> None:
    for line in lines:
        firm, signal = line["firm"], line["signal_db"] if line["signal_db"] is not None else 200.0
        if line["drop"] >= BROKEN:
            assert not (firm >= OK_FIRM and signal >= OK_DB - 3), line  # with a margin of 3 dB
        if line["drop"] < GOOD:
            assert not (firm < FAILED_FIRM + 2 and signal < FAILED_DB + 1), line


def test_the_page_is_that_of_the_lines(lines: list[Line], tmp_path: Path) -> None:
    text = page(lines)
    assert text == (OUT / "verdicts.md").read_text(encoding="utf-8")
    assert all(verdict in text for verdict in VERDICTS)
    part = tmp_path / "lines.jsonl"
    part.write_text(json.dumps(lines[0]) + '\n{"teacher": "cut sh')
    assert lines_of(part) == [lines[0]]


def test_what_is_not_true_is_named(lines: list[Line]) -> None:
    broken, good = ({**lines[0], "drop": drop, "kind": "good"} for drop in (BROKEN, 0.0))
    assert len(wrong([{**broken, "run": OK, "check": FAILED, "alone": FAILED}])) == 1
    assert len(wrong([{**good, "run": OK, "check": FAILED, "alone": FAILED}])) == 2
