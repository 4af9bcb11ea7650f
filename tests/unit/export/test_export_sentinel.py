"""Probes make a file worse in the way they say; what is chosen notices it, and is what it claims to be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.images.tensors import read_tensors, write_tensors
from dfqkit_export.sentinel import (
    PLAIN,
    SENSITIVE,
    Candidates,
    Choice,
    Sentinel,
    TeacherFile,
    candidates_of,
    choice,
    choose,
    normalized,
    read_sentinel,
    sentinel_bytes,
    usual_choice,
    write_sentinel,
)
from dfqkit_export.sentinel.choice import likely_flips, power
from dfqkit_export.sentinel.probes import Probe, probed
from dfqkit_export.tasks import DEFAULT_TASK
from dfqkit_export.tasks.classification import LOGITS
from tests._messages import raises_naming
from tests.unit.export._bundles import SPEC, TEACHER, codes, write_net, write_set


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.unit.export.conftest import QdqBuilder

    folder = tmp_path_factory.mktemp("nets")
    found = {
        "model": write_net(QdqBuilder, folder / "model.onnx"),
        "teacher": write_net(QdqBuilder, folder / "teacher.onnx", quantized=False),
    }
    found["grading"] = write_set(folder / "grading.safetensors", codes(400), found["teacher"])
    return found


@pytest.fixture(scope="module")
def candidates(files: dict[str, Path]) -> Candidates:
    return candidates_of([StoredBank.open(files["grading"])])


@pytest.fixture(scope="module")
def teacher(files: dict[str, Path]) -> TeacherFile:
    return TeacherFile(path=files["teacher"], name="toy", sha256=TEACHER)


@pytest.fixture(scope="module")
def chosen(files: dict[str, Path], teacher: TeacherFile, candidates: Candidates) -> Sentinel:
    return choose(files["model"], teacher, candidates, Choice(sensitive=80, plain=80))


def logits(model: onnx.ModelProto, folder: Path, images: NDArray[Any], **options: Any) -> NDArray[Any]:
    onnx.save(model, folder / "probe.onnx")
    return OrtSession(folder / "probe.onnx", threads=1, **options).run(images)


class TestProbes:
    @pytest.mark.parametrize("bits", [6, 4, 2])
    def test_weights_have_so_many_levels(self, files: dict[str, Path], bits: int) -> None:
        model = onnx.load(files["model"])
        copy = probed(model, Probe(kind="weights", bits=bits))
        assert copy is not None
        before, after = (
            {t.name: numpy_helper.to_array(t).astype(np.int64) for t in m.graph.initializer if t.name.endswith("_int8")}
            for m in (model, copy)
        )
        assert before
        for name, codes_before in before.items():
            for old, new in zip(codes_before, after[name], strict=True):
                step = np.abs(old).max() / (2 ** (bits - 1) - 1)
                assert len(np.unique(new)) <= 2**bits - 1
                assert np.abs(new - old).max() <= step / 2 + 0.5

    def test_stochastic_rounding_is_unbiased_and_seeded(self, files: dict[str, Path]) -> None:
        model = onnx.load(files["model"])
        found = []
        for seed in (1, 1, 2):
            copy = probed(model, Probe(kind="weights", bits=4, seed=seed))
            assert copy is not None
            found.append(copy.SerializeToString(deterministic=True))
        assert found[0] == found[1] != found[2]

    def test_what_cannot_be_changed_is_none(self, files: dict[str, Path]) -> None:
        assert probed(onnx.load(files["model"]), Probe(kind="weights", bits=8)) is None
        rounded = probed(onnx.load(files["model"]), Probe(kind="weights", bits=4))
        assert rounded is not None
        floats = onnx.load(files["teacher"])
        assert probed(floats, Probe(kind="activations", seed=0)) is None

    def test_a_file_of_few_bits_is_not_called_worse_for_its_8_bit_layers(self, files: dict[str, Path]) -> None:
        model = onnx.load(files["model"])
        for tensor in model.graph.initializer:
            if tensor.name == "conv2.weight_int8":  # most of the weights, now of 4 bits
                few = numpy_helper.to_array(tensor) // 17
                tensor.CopyFrom(numpy_helper.from_array(few.astype(np.int8), tensor.name))
        assert [probed(model, Probe(kind="weights", bits=bits)) is None for bits in (7, 5, 3)] == [True, True, False]

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_other_scales_mean_the_same_fused_and_as_written(
        self, files: dict[str, Path], tmp_path: Path, seed: int
    ) -> None:
        images = normalized(codes(40, seed=3), SPEC)
        model = onnx.load(files["model"])
        copy = probed(model, Probe(kind="activations", seed=seed))
        assert copy is not None
        onnx.checker.check_model(copy)
        fused, written = (logits(copy, tmp_path, images, optimized=on) for on in (True, False))
        assert np.abs(fused - written).max() < 0.05 * np.abs(written).max()
        assert np.abs(fused - logits(model, tmp_path, images)).max() > 0.02

    def test_the_model_itself_stays(self, files: dict[str, Path]) -> None:
        model = onnx.load(files["model"])
        before = model.SerializeToString(deterministic=True)
        probed(model, Probe(kind="activations", seed=0))
        probed(model, Probe(kind="weights", bits=3))
        assert model.SerializeToString(deterministic=True) == before


class TestCandidates:
    @pytest.mark.parametrize("source", ["dfq:calibration", "zeroq:held_out"])
    def test_what_made_the_student_does_not_judge_it(self, files: dict[str, Path], tmp_path: Path, source: str) -> None:
        used = write_set(tmp_path / "a.safetensors", codes(20), files["teacher"], source)
        with pytest.raises(ArtefactError, match=rf"are {source}: they made or selected a student"):
            candidates_of([StoredBank.open(used)])

    def test_images_of_other_sets_are_left_out_and_none_comes_twice(
        self, files: dict[str, Path], tmp_path: Path
    ) -> None:
        images = codes(30)
        double = np.concatenate([images, images[:5]])
        first = write_set(tmp_path / "a.safetensors", double, files["teacher"], "zeroq:grading")
        used = write_set(tmp_path / "b.safetensors", images[:10], files["teacher"], "dfq:calibration")
        found = candidates_of([StoredBank.open(first)], [StoredBank.open(used)])
        assert np.array_equal(found.images, images[10:])

    def test_sources_are_named(self, files: dict[str, Path], tmp_path: Path) -> None:
        sets = [
            write_set(tmp_path / f"{s}.safetensors", codes(20, s), files["teacher"], f"m{s}:grading") for s in (1, 2)
        ]
        found = candidates_of([StoredBank.open(path) for path in sets], most=20)
        assert found.sources == ("m1:grading", "m2:grading")
        assert np.bincount(found.source).tolist() == [10, 10]

    def test_too_few(self, files: dict[str, Path], tmp_path: Path) -> None:
        few = write_set(tmp_path / "a.safetensors", codes(5), files["teacher"])
        with pytest.raises(ArtefactError, match=r"Only 5 different images .* at least 6"):
            candidates_of([StoredBank.open(few)])


def disagree(chosen: Sentinel, values: NDArray[Any]) -> NDArray[np.bool_]:
    return chosen.answers[LOGITS].argmax(1) != values.argmax(1)  # type: ignore[no-any-return]


class TestChoice:
    def test_it_is_what_it_says(self, chosen: Sentinel, files: dict[str, Path], candidates: Candidates) -> None:
        assert chosen.kind.tolist() == [SENSITIVE] * 80 + [PLAIN] * 80
        known = {image.tobytes() for image in candidates.images}
        mine = [image.tobytes() for image in chosen.images]
        assert len(set(mine)) == 160
        assert set(mine) <= known
        expected = OrtSession(files["teacher"], threads=1).run(normalized(chosen.images, SPEC))
        np.testing.assert_allclose(chosen.answers[LOGITS], expected, rtol=1e-5, atol=1e-5)
        assert (chosen.teacher_name, chosen.teacher_sha256, chosen.sources) == ("toy", TEACHER, ("dfq:grading",))

    def test_it_notices_more_than_images_at_random(
        self, chosen: Sentinel, files: dict[str, Path], candidates: Candidates, tmp_path: Path
    ) -> None:
        images = normalized(chosen.images, SPEC)
        own = disagree(chosen, OrtSession(files["model"], threads=1).run(images))
        assert own[chosen.sensitive].sum() <= own[chosen.plain].sum()
        added = {SENSITIVE: 0, PLAIN: 0}
        for bits, seed in ((6, 101), (6, 102), (5, 103), (5, 104)):  # none of these took part
            copy = probed(onnx.load(files["model"]), Probe(kind="weights", bits=bits, seed=seed))
            assert copy is not None
            worse = disagree(chosen, logits(copy, tmp_path, images))
            for kind in added:
                added[kind] += int(worse[chosen.kind == kind].sum()) - int(own[chosen.kind == kind].sum())
        assert added[SENSITIVE] > 2 * added[PLAIN] > 0

    def test_same_seed_same_bytes_other_seed_other_plain_images(
        self, chosen: Sentinel, files: dict[str, Path], teacher: TeacherFile, candidates: Candidates
    ) -> None:
        again = choose(files["model"], teacher, candidates, Choice(sensitive=80, plain=80))
        other = choose(files["model"], teacher, candidates, Choice(sensitive=80, plain=80, seed=1))
        assert sentinel_bytes(again) == sentinel_bytes(chosen)
        assert not np.array_equal(other.images[other.plain], chosen.images[chosen.plain])

    def test_the_power_is_a_rising_line(self, chosen: Sentinel) -> None:
        told = chosen.power
        assert told["images"] == 80
        assert told["flips"] == sorted(told["flips"])
        assert len(told["flips"]) == len(told["points"]) > 1
        assert told["equal_flips"] <= told["flips"][0]
        assert told["minimum_detectable"] < told["minimum_detectable_at_random"]
        json.dumps(told, allow_nan=False)

    def test_a_small_limit_holds_fewer(
        self, files: dict[str, Path], teacher: TeacherFile, candidates: Candidates, tmp_path: Path
    ) -> None:
        found = choose(files["model"], teacher, candidates, Choice(limit=24_000))
        write_sentinel(tmp_path / "s.safetensors", found)
        assert 12_000 < (tmp_path / "s.safetensors").stat().st_size <= 24_000
        assert int(found.plain.sum()) * 2 == pytest.approx(int(found.sensitive.sum()), abs=2)
        with raises_naming(ArtefactError, "235 bytes", "9,000 bytes"):
            choose(files["model"], teacher, candidates, Choice(limit=9_000))

    def test_of_large_images_there_are_never_fewer_than_64(self) -> None:
        for side, fits in ((32, 576), (96, 64), (224, 64), (600, 64)):
            spec = replace(SPEC, shape=(3, side, side))
            assert (usual_choice(spec).limit - 8192) // (3 * side**2 + 43) >= fits
            assert (usual_choice(spec).limit == 2_000_000) == (side <= 96)

    def test_a_float_file_is_judged_by_its_gaps(
        self, files: dict[str, Path], teacher: TeacherFile, candidates: Candidates
    ) -> None:
        found = choose(files["teacher"], teacher, candidates)
        assert "bit weights" in found.rule  # the float twin of the fixture has 8-bit weight codes
        b = onnx.load(files["teacher"])
        for node in [n for n in b.graph.node if n.op_type == "DequantizeLinear"]:
            init = {t.name: numpy_helper.to_array(t) for t in b.graph.initializer}
            scale = init[node.input[1]]
            shape = (-1, *[1] * (init[node.input[0]].ndim - 1))
            value = (init[node.input[0]] * scale.reshape(shape)).astype(np.float32)
            b.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            b.graph.node.remove(node)
        onnx.save(b, files["teacher"].with_name("plain.onnx"))
        found = choose(files["teacher"].with_name("plain.onnx"), teacher, candidates)
        assert found.power == {}
        assert "four times the distance" in found.rule

    def test_no_class_has_more_than_twice_its_share(self, chosen: Sentinel) -> None:
        counts = np.bincount(chosen.answers[LOGITS][chosen.sensitive].argmax(1), minlength=10)
        present = int((chosen.answers[LOGITS].argmax(1)[:, None] == np.arange(10)).any(0).sum())
        assert counts.max() <= math.ceil(2 * 80 / present) + 1

    @pytest.mark.parametrize(("target", "optimized"), [("tensorrt", False), ("onnxruntime", True), ("else", True)])
    def test_a_file_for_another_runtime_is_run_as_written(
        self,
        files: dict[str, Path],
        teacher: TeacherFile,
        candidates: Candidates,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        target: str,
        optimized: bool,
    ) -> None:
        model = onnx.load(files["model"])
        model.metadata_props.add(key="dfqkit.target", value=target)
        onnx.save(model, tmp_path / "model.onnx")
        opened: list[tuple[str, bool]] = []

        def session(path: str | Path, *, optimized: bool = True) -> OrtSession:
            opened.append((Path(path).name, optimized))
            return OrtSession(path, threads=1, optimized=optimized)

        monkeypatch.setattr(choice, "OrtSession", session)
        choose(tmp_path / "model.onnx", teacher, candidates, Choice(sensitive=40, plain=20))
        assert {flag for name, flag in opened if name != "teacher.onnx"} == {optimized}
        assert ("teacher.onnx", True) in opened

    def test_a_model_of_a_fixed_batch(
        self, files: dict[str, Path], teacher: TeacherFile, candidates: Candidates, chosen: Sentinel, tmp_path: Path
    ) -> None:
        model = onnx.load(files["model"])
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
        onnx.save(model, tmp_path / "fixed.onnx")
        found = choose(tmp_path / "fixed.onnx", teacher, candidates, Choice(sensitive=80, plain=80))
        assert np.array_equal(found.images, chosen.images)


def test_likely_flips_by_hand() -> None:
    teacher = np.array([[2.0, 0.0], [0.5, 0.0], [0.0, 4.0]])
    own = np.array([[1.0, 0.0], [1.5, 0.0], [0.0, 3.0]])  # every gap is 1 off
    probe = np.array([[4.0, 0.0], [-1.5, 0.0], [0.0, 2.0]])  # every gap is 2 off
    same, worse = likely_flips(DEFAULT_TASK, {LOGITS: teacher}, {LOGITS: own}, [{LOGITS: probe}])

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    assert same.tolist() == pytest.approx([phi(-1), phi(-0.5), phi(-3)])
    assert worse.tolist() == pytest.approx([phi(-0.5) / 2, (phi(-0.25) + 1) / 2, phi(-1.5) / 2])


def test_power_by_hand() -> None:
    n = 200
    own, probe = np.zeros(n, bool), np.zeros(n, bool)
    probe[:20] = True  # 10 points lost, all among the chosen
    told = power(own, [probe], np.arange(50), np.zeros(n))
    assert told["points"] == [0.5, 1.0, 2.0, 5.0, 10.0]
    assert told["flips"] == [1.0, 2.0, 4.0, 10.0, 20.0]
    noise = math.sqrt(50 * (1 / 52) * (51 / 52))
    assert told["minimum_detectable"] == pytest.approx(2 * noise / 2, abs=0.01)
    assert told["minimum_detectable_at_random"] == pytest.approx(200 * noise / 50, abs=0.01)
    assert power(own, [], np.arange(50), np.zeros(n)) == {}


class TestFile:
    def test_there_and_back(self, chosen: Sentinel, tmp_path: Path) -> None:
        write_sentinel(tmp_path / "s.safetensors", chosen)
        found = read_sentinel(tmp_path / "s.safetensors")
        assert sentinel_bytes(found) == sentinel_bytes(chosen)
        assert (found.spec, found.power, found.rule) == (SPEC, dict(chosen.power), chosen.rule)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema": 2}, r"schema 2, needed 1.*upgrade"),
            ({"schema": None}, r"schema None, needed 1.*Make it again"),
            ({"image": {"shape": [3, 8, 8]}}, r"contradicts itself"),
            ({"image": {**SPEC.to_dict(), "classes": 11}}, r"contradicts itself.*logits.*\(N, 11\)"),
            ({"teacher": "x"}, r"contradicts itself"),
            ({"sources": []}, r"contradicts itself.*must index 0 sources"),
            ({"power": 3}, r"contradicts itself"),
            ({"rule": None}, r"contradicts itself"),
        ],
    )
    def test_a_header_that_makes_no_sense(
        self, chosen: Sentinel, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = tmp_path / "s.safetensors"
        write_sentinel(path, chosen)
        tensors, metadata = read_tensors(path)
        write_tensors(path, tensors, {"sentinel": json.dumps(json.loads(metadata["sentinel"]) | change)})
        with pytest.raises(ArtefactError, match=message):
            read_sentinel(path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t.pop("kind"),
            lambda t: t.update(images=t["images"].astype(np.int16)),
            lambda t: t.update(images=t["images"][:, :, :4].copy()),
            lambda t: t.update(kind=t["kind"] + np.uint8(1)),
            lambda t: t.update(source=t["source"] - np.int16(1)),
            lambda t: t.update(source=t["source"][:3].copy()),
            lambda t: t.update(teacher_logits=t["teacher_logits"] * np.float32("nan")),
            lambda t: t.update({name: array[:0].copy() for name, array in t.items()}),
        ],
    )
    def test_tensors_that_do_not_fit(self, chosen: Sentinel, tmp_path: Path, change: Any) -> None:
        path = tmp_path / "s.safetensors"
        write_sentinel(path, chosen)
        tensors, metadata = read_tensors(path)
        change(tensors)
        write_tensors(path, tensors, metadata)
        with pytest.raises(ArtefactError, match=r"s.safetensors' contradicts itself"):
            read_sentinel(path)

    @pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{"])
    def test_a_file_of_something_else(self, tmp_path: Path, text: str) -> None:
        write_tensors(tmp_path / "s.safetensors", {"x": np.zeros(3)}, {"sentinel": text} if text else None)
        with pytest.raises(ArtefactError, match=r"is not a sentinel set"):
            read_sentinel(tmp_path / "s.safetensors")
