"""Text that is hostile or only mistaken: it ends in a message that says where and what to do, and in exit code 2."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from dfqkit.cli import main
from dfqkit.config.reading import parse_recipe
from dfqkit.config.yaml_text import read_yaml
from dfqkit_export.errors import RecipeError
from tests._messages import names

RECIPE = Path(__file__).parents[2] / "recipes" / "digits" / "dfq-w8a8-ort.yaml"

BOMB = "\n".join(
    [
        "args0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]",
        *(f"args{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)),
    ]
)

# What is appended to a good recipe, and what the message must name.
REFUSED = {
    "a key twice": ("seed: 1\nseed: 2", ["seed", "twice", "keep one"]),
    "a section twice": ("bank: {batch: 3}\nbank: {batch: 4}", ["bank", "keep one"]),
    "a key twice in a section": ("bank: {batch: 3, batch: 4}", ["batch", "keep one"]),
    "a merge that stands twice": ("bank: {<<: {batch: 3}, <<: {batch: 4}}", ["<<", "keep one"]),
    "a date": ("seed: 2026-01-01", ["a date", "quotes"]),
    "an invalid date": ("seed: 2026-13-45", ["a date", "quotes"]),
    "5,000 digits": ("seed: " + "9" * 5000, ["99999...", "an integer"]),
    "digits in another base": ("seed: 0x" + "f" * 5000, ["0xfff", "an integer"]),
    "minutes and hours of them": ("seed: " + ":".join(["1"] * 5000), ["1:1:1", "an integer"]),
    "no integer": ("seed: !!int many", ["many", "an integer"]),
    "an empty number": ("seed: !!float ''", ["a number"]),
    "no truth": ("seed: !!bool perhaps", ["perhaps", "bool"]),
    "deep nesting": ("floors: " + "[" * 60 + "]" * 60, ["50"]),
    "nesting without an end": ("floors: " + "[" * 20_000, ["nested too deep", "50"]),
    "nesting that is a block": ("\n".join(" " * n + "a:" for n in range(3000)), ["nested too deep", "50"]),
    "aliases that multiply": (BOMB, ["100000", "too much"]),
    "a value that holds itself": ("floors: &all [*all]", ["holds itself"]),
    "a mapping that holds itself": ("bank: &all {batch: *all}", ["holds itself"]),
    "an alias without an anchor": ("floors: *nothing", ["nothing"]),
    "a NUL byte": ("seed: \0", ["#x0000"]),
    "half a character": ('why: "\\ud800"', ["ud800", "text"]),
    "code": ("seed: !!python/object/apply:os.getpid []", ["python/object/apply:os.getpid"]),
    "bytes": ("seed: !!binary aGVsbG8=", ["binary"]),
    "a set": ("seed: !!set {a, b}", ["set"]),
    "a tag of its own": ("seed: !mine 3", ["!mine"]),
    "a key that is a list": ("? [a, b]\n: 3", ["key", "list"]),
    "two documents": ("---\nseed: 3", ["single document"]),
    "no end": ("floors: [", ["floors" * 0 or "flow"]),
    "a tab": ("bank:\n\tbatch: 3", ["\\t"]),
}


def text_with(more: str) -> str:
    """A good recipe with more at its end, of which nothing is there already."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    kept = {key: value for key, value in recipe.items() if key not in ("seed", "bank", "floors", "why")}
    return yaml.safe_dump(kept) + more + "\n"


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_words(case: str) -> None:
    more, facts = REFUSED[case]
    started = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text_with(more), "a.yaml")
    assert time.monotonic() - started < 20
    facts = ["line" if fact == "twice" else fact for fact in facts]
    names(caught.value, "a.yaml", *facts)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_line_ends_with_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(text_with(REFUSED[case][0]), encoding="utf-8")
    assert main(["recipe", "show", "a.yaml"]) == 2
    shown = capsys.readouterr()
    assert "a.yaml" in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    "value", ["2026-13-45", "9" * 5000, "[" * 20_000, "{a: 1, a: 2}", "&all [*all]", '"\\ud800"', "!!set {a}", "\0"]
)
def test_values_on_the_command_line_are_read_alike(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "digits/dfq-w8a8-ort", "--set", f"why={value}"]) == 2
    shown = capsys.readouterr()
    names(shown.err, "--set why=")
    assert "Traceback" not in shown.err


def test_a_path_without_an_end_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = ".".join(["teacher", "args", *["a"] * 500])
    assert main(["recipe", "show", "digits/dfq-w8a8-ort", "--set", f"{path}=1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 1, b: [2.5, true, null, 'x']}", {"a": 1, "b": [2.5, True, None, "x"]}),
        ("a: &one {b: 1}\nc: *one", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &one {b: 1, c: 2}\nd: {<<: *one, c: 3}\ne: {<<: *one}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}, "e": {"b": 1, "c": 2}}),  # noqa: E501
        ("'2026-13-45'", "2026-13-45"),
        ("18446744073709551615", 2**64 - 1),
        ("", None),
    ],
)  # fmt: skip
def test_plain_values_are_what_yaml_says(text: str, value: object) -> None:
    assert read_yaml(text, "it") == value == yaml.safe_load(text)
