"""Independent parts: the same files whatever the order, the number of processes, and the moment that one is lost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from dfqkit.cli import main
from dfqkit.images import ImageBank
from dfqkit.progress import silent
from dfqkit.run import bank_making, ray_parts
from dfqkit.run.bank_making import BankPlan, make_bank, make_one
from dfqkit.run.bank_parts import PartFolder
from dfqkit.run.parts import InOrder, Job, Told, machine, parted
from dfqkit.run.ray_parts import executor
from dfqkit_export.errors import ArtefactError, MissingExtraError, RecipeError, RuntimeCrashedError
from dfqkit_export.images.stored import StoredBank
from tests.unit.test_bank_making import ADAPTIVE, GENERATOR, MIXED, POOL, Stop, contents, recipe_of, stopping

PLAN = BankPlan(n=50, shard=20, command="dfqkit synthesize R --n 50 --independent", independent=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(out: Path, overrides: list[str] = POOL) -> StoredBank:
    return make_bank(recipe_of(*overrides), out, PLAN, device="cpu", progress=silent())


@pytest.mark.parametrize(
    "overrides",
    [POOL, *(pytest.param(more, marks=pytest.mark.slow) for more in (GENERATOR, ADAPTIVE, MIXED))],
    ids=["zeroq", "dfq", "adaptive", "mixture"],
)
def test_shards_are_the_same_in_any_order_and_process(overrides: list[str], tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", overrides)
    whole.verify()
    assert [shard.n for shard in whole.shards] == [20, 20, 10]
    assert len({shard.sha256 for shard in whole.shards}) == 3
    images = whole.take(range(50))[0]
    assert len({image.tobytes() for image in images}) == 50
    for index in (2, 0):
        bank_making._SOURCES.clear()  # as another process has none
        count = make_one(recipe_of(*overrides), tmp_path / "set", PLAN, index, device="cpu", progress=silent())
        assert count == whole.shards[index].n
    made(tmp_path / "set", overrides)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (bank_making.Making, "_round", 2),
        (ImageBank, "collect", 1),
        (PartFolder, "add", 1),
        (bank_making, "forget_parts", 0),
    ],
)
def test_an_interrupted_set_becomes_the_same_set(owner: Any, name: str, after: int, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank_making, "CHECKPOINT_SECONDS", 0.0)
        made(tmp_path / "whole")
        with pytest.MonkeyPatch.context() as stopper:
            stopper.setattr(owner, name, stopping(after, getattr(owner, name)))
            with pytest.raises(Stop):
                made(tmp_path / "set")
        again = made(tmp_path / "set")
    again.verify()
    assert {shard.sha256 for shard in again.shards} == {
        shard.sha256 for shard in StoredBank.open(tmp_path / "whole").shards
    }


def test_what_is_not_as_it_was_listed_is_made_again(tmp_path: Path) -> None:
    whole = contents(made(tmp_path / "whole").path)
    for index in range(3):
        make_one(recipe_of(*POOL), tmp_path / "set", PLAN, index, device="cpu", progress=silent())
    (tmp_path / "set" / "shard-00000.safetensors").write_bytes(b"x")
    (tmp_path / "set" / "parts" / "00001.json").write_text("{")
    listed = json.loads((tmp_path / "set" / "parts" / "00002.json").read_text())
    (tmp_path / "set" / "parts" / "00002.json").write_text(json.dumps(listed | {"cost": 0}))
    made(tmp_path / "set")
    assert contents(tmp_path / "set") == whole


def test_machines_of_several_kinds_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_one(recipe_of(*POOL), tmp_path / "set", PLAN, 0, device="cpu", progress=silent())
    monkeypatch.setattr("dfqkit.run.bank_parts.machine", lambda **_: machine() | {"instructions": "ANOTHER"})
    warnings = made(tmp_path / "set").facts["warnings"]
    assert "machines of several kinds (instructions " in warnings[0]
    assert "and ANOTHER)" in warnings[0]


def test_what_has_no_independent_shards_is_refused(tmp_path: Path) -> None:
    stored = made(tmp_path / "set")
    with pytest.raises(RecipeError, match=r"Source 'bank' hands out images .* Leave out --independent"):
        made(tmp_path / "again", [f"synthesis={{method: bank, path: {stored.path}}}"])
    assert not (tmp_path / "again").exists()
    with pytest.raises(RecipeError, match="has no shard 3: it has 3, counted from 0"):
        make_one(recipe_of(*POOL), tmp_path / "more", PLAN, 3, device="cpu", progress=silent())
    with pytest.raises(ArtefactError, match=r"holds another set \(independent True there"):
        make_bank(recipe_of(*POOL), stored.path, BankPlan(n=50, shard=20), device="cpu", progress=silent())


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_parts, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"the extra 'ray'. Run pip install '.*\[ray\]'"):
        executor("local")
    words = ["synthesize", "digits/zeroq-w8a8-ort", "--n", "8", "--out", str(tmp_path / "set"), "--cluster", "auto"]
    assert main(words) == 3
    assert "--cluster auto needs Ray" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    assert isinstance(executor(None), InOrder)


class _Bar:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, steps: int = 1, /, **_: float) -> None:
        assert steps >= 0
        self.done += steps


def test_the_bar_counts_every_part_once_whatever_is_told_twice() -> None:
    bar = _Bar()
    job = Job(name="shard", function=max, common=None, indices=[3, 5], sizes=[20, 10], alone=str, threads=1)
    told = Told(job, bar)
    told(3, 0.5)
    assert bar.done == 10
    told(3, 0.1)  # its worker was lost and another began it again
    told(5, 1.0)
    assert bar.done == 20
    told(3, 1.0)
    assert bar.done == job.size == 30


def test_what_machines_differ_in_is_named() -> None:
    here = machine()
    assert parted([here, here]) == ""
    assert parted([here, here | {"torch": "1.0"}]) == f"torch {torch.__version__} and 1.0"


class _Ray:
    """What `_result` needs of Ray; a reference is what it leads to."""

    class exceptions:  # noqa: N801
        RayError, RayTaskError = ConnectionError, ImportError

    @staticmethod
    def get(ref: Any) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref


def _refuses(_common: Any, index: int, _tell: Any) -> None:
    logging.getLogger("a.part").warning("it is about to fail")
    message = f"Image {index} is missing."
    raise ArtefactError(message)


def _breaks(_common: Any, index: int, _tell: Any) -> None:
    raise ZeroDivisionError(index)


def _outcome(job: Job, kind: dict[str, str]) -> dict[str, Any]:
    given = {"function": job.function, "common": None, "threads": 1, "kind": kind, "gpu": False}
    return ray_parts._one(given, 3, None)


def test_a_part_that_fails_is_named_with_its_log_and_the_command_that_does_it_alone() -> None:
    def job(function: Any) -> Job:
        return Job(
            name="shard", function=function, common=None, indices=[3], sizes=[1], alone=lambda k: f"do {k}", threads=1
        )

    pattern = r"(?s)Image 3 is missing. \(shard 3, on .*, pid \d+\).*it is about to fail.*by: do 3"
    with pytest.raises(ArtefactError, match=pattern):
        ray_parts._result(_Ray, _outcome(job(_refuses), machine()), job(_refuses), 3)
    with pytest.raises(RuntimeError, match=r"(?s)do 3.*ZeroDivisionError"):
        ray_parts._result(_Ray, _outcome(job(_breaks), machine()), job(_breaks), 3)
    with pytest.raises(ArtefactError, match=r"another kind than those that the job began on \(torch 1.0 and "):
        ray_parts._result(_Ray, _outcome(job(_breaks), machine() | {"torch": "1.0"}), job(_breaks), 3)
    with pytest.raises(RuntimeCrashedError, match=r"shard 3 was lost \(11 of them\): gone. .* by: do 3"):
        ray_parts._result(_Ray, ConnectionError("gone."), job(_breaks), 3)
    with pytest.raises(RuntimeError, match=r"(?s)\(shard 3\) .* by: do 3.*no module"):
        ray_parts._result(_Ray, ImportError("no module"), job(_breaks), 3)
    assert ray_parts._result(_Ray, {"result": 5}, job(max), 3) == 5
    failed = _outcome(job(_refuses), machine())
    assert ray_parts._one({}, 4, None, failed) == failed  # what waited for it is not begun


def test_the_kind_of_a_machine_is_plain_text_so_that_who_hands_out_parts_does_without_torch() -> None:
    assert {type(value) for value in machine().values()} == {str}
