"""The options of the pytest plugin.

What belongs here: their names on the command line and in pytest's configuration file, and what they come to.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dfqkit_export.gate import Baseline

_DEFAULT_BASELINE = "dfqkit-baseline.json"
_REPORTS = (".json", ".md")


@dataclass(kw_only=True)
class Settings:
    """The options in force, and the baseline once it was read.

    Attributes:
        path: The baseline's file.
        explicit: The baseline as the command line gave it; "" where it did not.
        update: Whether to record instead of comparing.
        strict: As `gate.Options.strict`; also fails on a missing runtime and on unused cases.
        allow_not_judged: As `gate.Options.allow_not_judged`; the test is then skipped, not passed.
        reason: As `gate.Options.reason`.
        skip: Whether no check is made.
        report: Where a report of all checks goes, or None.
    """

    path: Path
    explicit: str = ""
    update: bool = False
    strict: bool = False
    allow_not_judged: bool = False
    reason: str = ""
    skip: bool = False
    report: Path | None = None
    _baseline: Baseline | None = field(default=None, repr=False)

    def baseline(self) -> Baseline:
        """Return the baseline, read once; one without cases where there is no file yet."""
        from dfqkit_export.gate import Baseline, read_baseline

        if self._baseline is None:
            self._baseline = read_baseline(self.path) if self.path.exists() else Baseline()
        return self._baseline


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each with a key for the configuration file."""
    group = parser.getgroup("dfqkit", "accuracy of quantized files (fixture accuracy_check)")
    group.addoption(
        "--dfqkit-baseline", metavar="PATH", help=f"what to compare with (default: {_DEFAULT_BASELINE} in the rootdir)"
    )
    group.addoption(
        "--dfqkit-update",
        nargs="?",
        const="yes",
        type=_update_mode,
        metavar="force",
        help="record what is measured, pass, and list what that changes; refused where CI is set, unless =force",
    )
    group.addoption(
        "--dfqkit-strict",
        action="store_true",
        default=None,
        help="fail on improved, new and unmeasured metrics, on a missing runtime and on unused cases, too",
    )
    group.addoption(
        "--dfqkit-allow-not-judged",
        action="store_true",
        default=None,
        help="skip the test of a file that cannot be judged here, in place of failing it",
    )
    group.addoption(
        "--dfqkit-reason",
        metavar="TEXT",
        help="with --dfqkit-update: record files whose verdict is not ok, and say why",
    )
    group.addoption("--dfqkit-report", metavar="PATH", help="write a report of all checks, .json or .md")
    group.addoption("--dfqkit-skip", action="store_true", default=None, help="skip tests that check accuracy")
    parser.addini("dfqkit_baseline", "as --dfqkit-baseline, relative to this file", default="")
    parser.addini("dfqkit_update", "as --dfqkit-update: yes or force", default="")
    parser.addini("dfqkit_strict", "as --dfqkit-strict", type="bool", default=False)
    parser.addini("dfqkit_allow_not_judged", "as --dfqkit-allow-not-judged", type="bool", default=False)
    parser.addini("dfqkit_report", "as --dfqkit-report, relative to this file", default="")
    parser.addini("dfqkit_skip", "as --dfqkit-skip", type="bool", default=False)


def read_settings(config: pytest.Config) -> Settings:
    """Return the options in force; the command line goes before the configuration file.

    Raises:
        pytest.UsageError: An option makes no sense, or an update is asked for where CI is set.
    """
    report = _path(config, "report")
    if report is not None and report.suffix not in _REPORTS:
        message = f"--dfqkit-report takes a file that ends in {' or '.join(_REPORTS)}; found '{report.name}'"
        raise pytest.UsageError(message)
    return Settings(
        path=_path(config, "baseline") or config.rootpath / _DEFAULT_BASELINE,
        explicit=config.getoption("dfqkit_baseline") or "",
        update=_updating(config),
        strict=_option(config, "strict"),
        allow_not_judged=_option(config, "allow_not_judged"),
        reason=(config.getoption("dfqkit_reason") or "").strip(),
        skip=_option(config, "skip"),
        report=report,
    )


def _option(config: pytest.Config, name: str) -> Any:
    given = config.getoption(f"dfqkit_{name}")
    return config.getini(f"dfqkit_{name}") if given is None else given


def _path(config: pytest.Config, name: str) -> Path | None:
    given, stated = config.getoption(f"dfqkit_{name}"), config.getini(f"dfqkit_{name}")
    if given is not None:
        return Path(config.invocation_params.dir, given)
    return Path(config.inipath.parent if config.inipath else config.rootpath, stated) if stated else None


def _update_mode(text: str) -> str:
    if text not in ("yes", "force"):
        message = f"takes nothing or '=force'; found '{text}' (a path goes before it)"
        raise argparse.ArgumentTypeError(message)
    return text


def _updating(config: pytest.Config) -> bool:
    mode = _option(config, "update")
    if mode not in ("", "yes", "force"):
        message = f"The key dfqkit_update takes yes or force; found '{mode}'"
        raise pytest.UsageError(message)
    if mode == "yes":
        from dfqkit_export.gate.baseline import in_ci

        if in_ci():
            message = (
                "--dfqkit-update is refused where CI is set, so that a pipeline cannot approve its own change; record "
                "the baseline on your machine and commit it, or give --dfqkit-update=force"
            )
            raise pytest.UsageError(message)
    return bool(mode)
