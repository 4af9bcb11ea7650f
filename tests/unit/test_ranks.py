"""Several processes that torchrun started: who talks, and what is refused before any of them waits for another."""

from __future__ import annotations

import pytest
import torch

from dfqkit.cli import main
from dfqkit.cli.options import note, result
from dfqkit.progress import Progress, first_process
from dfqkit.training.ranks import ALONE, Ranks
from dfqkit_export.errors import RecipeError
from tests.unit.test_distill import distiller


@pytest.fixture
def _second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


def test_one_process_is_alone_and_changes_nothing() -> None:
    assert Ranks.joined("cpu") is ALONE
    images = torch.arange(6.0).reshape(6, 1, 1, 1)
    assert ALONE.first
    assert ALONE.share(images).equal(images)
    assert ALONE.mean({"a": 0.1}) == {"a": 0.1}
    assert ALONE.told(0.3) == 0.3


def test_shares_of_a_batch_are_the_batch() -> None:
    images = torch.arange(6.0).reshape(6, 1, 1, 1)
    assert torch.cat([Ranks(rank=rank, world=3).share(images) for rank in range(3)]).equal(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch": 5}, "distill.batch is 5, which 2 processes cannot share evenly"), ({"harder": 0.1}, "distill.harder")],
)
def test_what_processes_would_compute_otherwise_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        distiller(**changes).spread(Ranks(world=2))


@pytest.mark.usefixtures("_second")
def test_only_the_first_process_talks_but_each_says_what_it_died_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert not first_process()
    assert Progress().quiet
    note("ok | 3 s")
    result("a table")
    note("error: what was wrong")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: what was wrong\n")


@pytest.mark.usefixtures("_second")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "recipes"], "torchrun started 2 processes, which `dfqkit run` alone can share"),
        (["run", "digits/dfq-w8a8-ort"], "give them one folder with --out"),
    ],
)
def test_commands_that_processes_cannot_share_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
