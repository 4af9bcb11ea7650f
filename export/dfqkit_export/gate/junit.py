"""A check's outcome as JUnit XML: one test case for each metric of each case, values as properties.

What belongs here: the form that CI systems read (the "xunit2" family, as pytest writes it).
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from .judgement import CaseOutcome, Outcome
from .verdicts import Row

__all__ = ["render_junit"]

#: What XML 1.0 cannot hold, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(outcome: Outcome) -> bytes:
    """Return the outcome as an XML document, UTF-8."""
    root = ElementTree.Element("testsuites", name="dfqkit check")
    suite = ElementTree.SubElement(root, "testsuite", name="dfqkit check")
    failures = errors = skipped = tests = 0
    for case in outcome.cases:
        if case.error:
            tests, errors = tests + 1, errors + 1
            element = _test(suite, case.name, "error")
            ElementTree.SubElement(element, "error", message=_legal(case.error)).text = _legal(case.error)
        for row in case.rows:
            kind = _add(suite, case, row, strict=outcome.strict)
            tests += 1
            failures += kind == "failure"
            skipped += kind == "skipped"
    for name in outcome.unused if outcome.strict else ():
        tests, failures = tests + 1, failures + 1
        message = "The case is in the baseline, but no file was given for it."
        ElementTree.SubElement(_test(suite, name, "unused"), "failure", message=message).text = message
    counts = {"tests": tests, "failures": failures, "errors": errors, "skipped": skipped, "time": 0}
    for element in (root, suite):
        for key, count in counts.items():
            element.set(key, str(count))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _add(suite: ElementTree.Element, case: CaseOutcome, row: Row, *, strict: bool) -> str:
    element = _test(suite, case.name, row.metric)
    properties = ElementTree.SubElement(element, "properties")
    for key, value in row.to_dict().items():
        if value not in (None, "") and key not in ("metric", "reason"):
            ElementTree.SubElement(properties, "property", name=key, value=_legal(str(value)))
    reason = row.reason or row.verdict
    if row.fails(strict=strict):
        text = "\n".join([reason, *(f"cause: {cause}" for cause in case.causes)])
        failure = ElementTree.SubElement(element, "failure", message=_legal(f"{row.verdict}: {reason}"))
        failure.text = _legal(text)
        return "failure"
    if row.verdict in ("unmeasured", "expected"):
        ElementTree.SubElement(element, "skipped", message=_legal(f"{row.verdict}: {reason}"))
        return "skipped"
    return ""


def _test(suite: ElementTree.Element, case: str, metric: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_legal(case), name=_legal(metric), time="0")


def _legal(text: str) -> str:
    return _ILLEGAL.sub("?", text)
