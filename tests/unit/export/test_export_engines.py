"""TensorRT's adapter and the isolation of vendor libraries, against stand-ins for 10.13, 11 and RTX 1.7."""

from __future__ import annotations

import gc
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from dfqkit_export.backends import get_backend
from dfqkit_export.backends.isolation import Limits, UnforeseenError, call_isolated
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.backends.session import Session
from dfqkit_export.backends.tensorrt import session as tensorrt_session
from dfqkit_export.backends.tensorrt._engine_build import build_engine
from dfqkit_export.backends.tensorrt.engines import check_batches
from dfqkit_export.backends.tensorrt.session import EngineSession
from dfqkit_export.backends.tensorrt_rtx import session as rtx_session
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError, RuntimeUnavailableError, TargetError
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming
from tests.unit.export._qdq_models import trt

VENDOR = Path(__file__).parent / "_vendor"
BOTH = pytest.mark.parametrize("version", ["10.13.3.9", "11.1.0.106"])
Install = Callable[[str, str], ModuleType]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a stand-in for one version of one module, and for torch with a GPU, in front of what is installed."""
    folder = tmp_path / "vendor"

    def put(name: str, version: str) -> ModuleType:
        (folder / name).mkdir(parents=True)
        shutil.copy(VENDOR / "nvinfer_stub.py", folder)
        shutil.copy(VENDOR / "torch_stub.py", folder / "torch.py")
        source = f"from nvinfer_stub import module_of\nglobals().update(module_of({name!r}, {version!r}))\n"
        (folder / name / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        for module in (name, "torch", "nvinfer_stub"):
            # Set and deleted, so that what stands there after the test is what stood there before.
            monkeypatch.setitem(sys.modules, module, sys)
            del sys.modules[module]
        return importlib.import_module(name)

    return put


def net(path: Path, *, wish: str = "", name: str = "net.onnx") -> Path:
    """Write conv, relu, global pool and classifier in TensorRT's form; the classifier's input is not quantized."""
    b = trt()
    x = b.relu(b.conv(b.qdq("x", "in"), "conv"))
    pooled = b.node("Flatten", [b.node("GlobalAveragePool", [b.qdq(x, "act")], "pool")], "flatten")
    model = b.model(b.gemm(pooled, "fc"), rank=2)
    for size, value in zip(model.graph.output[0].type.tensor_type.shape.dim, (None, 5), strict=True):
        if value is not None:
            size.dim_value = value
    model.graph.doc_string = wish
    onnx.save(model, str(path / name))
    return path / name


def images(n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)


class TestTable:
    def test_an_unknown_name_is_told_the_nearest(self) -> None:
        with pytest.raises(TargetError, match=r"'tensort'.*mean 'tensorrt'.*onnxruntime, .*openvino"):
            get_backend("tensort")


class TestIsolation:
    ASK = {"runtime": "Vendor", "doing": "building 'm.onnx'"}  # noqa: RUF012 - read only

    def build(self, path: Path, **options: Limits) -> object:
        arguments = {"module": "tensorrt", "path": str(path), "plan": str(path.with_suffix(".plan"))}
        return call_isolated(
            "backends.tensorrt._engine_build:build_engine", {**arguments, "profile": [1, 2, 4]}, **self.ASK, **options
        )

    def test_the_answer_comes_back(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        found = self.build(net(tmp_path))
        assert isinstance(found, dict)
        assert (found["accepted"], found["version"]) == (True, "11.1.0")

    def test_a_signal_is_an_error_that_says_what_was_done_last(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        with pytest.raises(RuntimeCrashedError) as caught:
            self.build(net(tmp_path, wish="crash"))
        text = str(caught.value)
        assert caught.value.exit_code == 3
        assert "Vendor crashed while building 'm.onnx'" in text
        assert "SIGSEGV (11)" in text
        assert "Parsing node: fc [Gemm]" in text.splitlines()[-2]
        assert "building the engine" in text.splitlines()[-1]

    def test_an_exit_code_is_an_error_with_the_last_words(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        with pytest.raises(RuntimeCrashedError, match=r"(?s)exit code 7.*the vendor's last words$"):
            self.build(net(tmp_path, wish="exit"))

    def test_a_hang_ends_in_time(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        with pytest.raises(RuntimeCrashedError, match=r"stopped after 0\.5 seconds"):
            self.build(net(tmp_path, wish="hang"), limits=Limits(seconds=0.5))

    def test_errors_for_the_user_keep_class_and_text(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "9.3.0")
        with pytest.raises(RuntimeUnavailableError, match=r"9\.3\.0 is installed.*10\.13 up to"):
            self.build(net(tmp_path))

    def test_a_bug_in_the_child_shows_its_traceback(self) -> None:
        with pytest.raises(UnforeseenError, match=r"(?s)Traceback.*unexpected keyword argument 'colour'"):
            call_isolated("backends.tensorrt.engines:check_batches", {"colour": 1}, **self.ASK)

    def test_a_copy_collects_none_of_its_parents_garbage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DFQKIT_CHILD", "fork")
        assert gc.isenabled()
        assert call_isolated("backends.isolation:gc.isenabled", {}, fresh=False, **self.ASK) is False

    def test_what_the_working_folder_holds_is_not_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "json.py").write_text("raise SystemExit(9)")
        monkeypatch.chdir(tmp_path)
        assert call_isolated("backends.tensorrt.engines:check_batches", {"batches": [1, 2, 3]}, **self.ASK) == [1, 2, 3]


class TestTensorRt:
    @BOTH
    def test_an_engine_gives_the_models_logits(self, install: Install, tmp_path: Path, version: str) -> None:
        install("tensorrt", version)
        path = net(tmp_path)
        session = tensorrt_session.load(path, batches=(1, 4, 6), timing_cache=tmp_path / "timings")
        assert (tmp_path / "timings").read_text() == f"{version} timings"
        assert isinstance(session, Session)
        expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": images(6)})[0]
        np.testing.assert_array_equal(session.run(images(6)), expected)
        # Ten images are two batches of at most six.
        assert session.predict(np.concatenate([images(6), images(4)])).shape == (10, 5)
        assert (session.input_shape, session.batches) == ((None, 3, 8, 8), (1, 6))
        with pytest.raises(ArtefactError, match="batches of 1 to 6 images, found 7"):
            session.run(images(7))
        with pytest.raises(ArtefactError, match="takes images of shape"):
            session.run(images(2)[:, :1])

    @BOTH
    def test_every_output_comes_by_its_name(self, install: Install, tmp_path: Path, version: str) -> None:
        install("tensorrt", version)
        path = net(tmp_path)
        model = onnx.load(str(path))
        pooled = next(node.output[0] for node in model.graph.node if node.op_type == "Flatten")
        model.graph.output.append(onnx.helper.make_tensor_value_info(pooled, onnx.TensorProto.FLOAT, [None, 4]))
        onnx.save(model, str(path))
        found = tensorrt_session.load(path).run_all(images(2))
        expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": images(2)})
        assert list(found) == [value.name for value in model.graph.output]
        for values, wanted in zip(found.values(), expected, strict=True):
            np.testing.assert_array_equal(values, wanted)

    @BOTH
    def test_the_inspector_says_what_runs_in_integers(self, install: Install, tmp_path: Path, version: str) -> None:
        install("tensorrt", version)
        realised = realised_precision(net(tmp_path), "tensorrt")
        assert [(layer.name, layer.precision) for layer in realised.layers] == [("conv", "int8"), ("fc", "float")]
        assert realised.layers[0].executed_as == "CaskConvolution"
        assert "has no DequantizeLinear" in realised.layers[1].detail or "W6" in realised.layers[1].detail
        assert realised.float_ops == (("CaskGemmMatrixMultiply", "fc + fc"),)

    @BOTH
    def test_the_build_is_detailed_and_strongly_typed(self, install: Install, tmp_path: Path, version: str) -> None:
        install("tensorrt", version)
        plan = tmp_path / "net.plan"
        # On 10.x the stand-in refuses what is not strongly typed.
        assert build_engine("tensorrt", str(net(tmp_path)), str(plan), [2, 3, 4])["accepted"]
        header = json.loads(plan.read_bytes().partition(b"\n")[0])
        assert header["verbosity"] == "DETAILED"
        assert header["profile"] == {"x": [[2, 3, 8, 8], [3, 3, 8, 8], [4, 3, 8, 8]]}

    def test_a_refused_file_names_the_node(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        model = onnx.load(str(net(tmp_path)))
        model.graph.node[-1].op_type = "NegativeLogLikelihoodLoss"  # of ONNX, with as many inputs, and not of TensorRT
        del model.graph.node[-1].attribute[:]
        onnx.save(model, str(tmp_path / "bad.onnx"))
        build = tensorrt_session.build(tmp_path / "bad.onnx")
        (problem,) = build.problems
        assert (build.accepted, problem.node, problem.operator, problem.code) == (
            False, "fc", "NegativeLogLikelihoodLoss", "UNSUPPORTED_NODE",
        )  # fmt: skip
        refused = r"bad.onnx.*tensorrt 11.1.0: NegativeLogLikelihoodLoss 'fc': No importer"
        with pytest.raises(ArtefactError, match=refused):
            tensorrt_session.load(tmp_path / "bad.onnx")

    def test_timings_are_kept_and_those_of_another_version_replaced(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "10.13.3.9")
        cache, path, plan = tmp_path / "timings", str(net(tmp_path)), str(tmp_path / "net.plan")
        for before, after in (
            (None, b"10.13.3.9 timings"),
            (b"10.13.3.9 timings and more", b"10.13.3.9 timings and more"),
            (b"11.0 timings", b"10.13.3.9 timings"),
        ):
            if before is not None:
                cache.write_bytes(before)
            build_engine("tensorrt", path, plan, [1, 2, 4], timing_cache=str(cache))
            assert cache.read_bytes() == after

    def test_an_engine_of_another_version_is_refused(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        plan = tmp_path / "net.plan"
        build_engine("tensorrt", str(net(tmp_path)), str(plan), [1, 2, 4])
        other = plan.read_bytes().replace(b"11.1.0", b"10.9.0", 1)
        with pytest.raises(ArtefactError, match=r"cannot be loaded by tensorrt 11\.1\.0"):
            EngineSession("net.onnx", "tensorrt", other)

    def test_open_sizes_beside_the_batch_are_refused(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        model = onnx.load(str(net(tmp_path)))
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
        onnx.save(model, str(tmp_path / "open.onnx"))
        with raises_naming(ArtefactError, "other than the batch"):
            tensorrt_session.build(tmp_path / "open.onnx")

    def test_open_sizes_are_those_of_the_image_that_the_file_names(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt", "11.1.0")
        model = onnx.load(str(net(tmp_path)))
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
        image = ImageSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, dynamic=True)
        model.metadata_props.add(key="dfqkit.image", value=json.dumps(image.to_dict()))
        onnx.save(model, str(tmp_path / "open.onnx"))
        assert build_engine("tensorrt", str(tmp_path / "open.onnx"), str(tmp_path / "plan"), [2, 3, 4])["accepted"]
        header = json.loads((tmp_path / "plan").read_bytes().partition(b"\n")[0])
        assert header["profile"] == {"x": [[2, 3, 8, 8], [3, 3, 8, 8], [4, 3, 8, 8]]}

    def test_without_the_package_it_says_that_no_extra_brings_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: None)
        missing = get_backend("tensorrt").missing()
        assert "no extra" in missing
        assert "--runtime tensorrt-rtx" in missing
        with pytest.raises(RuntimeUnavailableError, match="not installed"):
            tensorrt_session.load("m.onnx")

    def test_without_a_gpu_the_vendor_is_not_touched(
        self, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install("tensorrt", "11.1.0")
        torch = importlib.import_module("torch")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.delitem(sys.modules, "tensorrt")
        with pytest.raises(RuntimeUnavailableError, match="torch sees none"):
            tensorrt_session.build(net(tmp_path))
        with pytest.raises(RuntimeUnavailableError, match="torch sees none"):
            EngineSession("net.onnx", "tensorrt", b"")
        assert "tensorrt" not in sys.modules

    @pytest.mark.parametrize("batches", [(0, 1, 2), (3, 2, 4), (1, 2)])
    def test_batches_that_are_no_range_are_refused(self, batches: tuple[int, ...]) -> None:
        with pytest.raises(ArtefactError, match="smallest, best and largest"):
            check_batches(batches)


class TestRtxStandIn:
    def test_the_capability_is_the_one_asked_for(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt_rtx", "1.7.1.116")
        assert rtx_session.build(net(tmp_path), compute_capability="SM89").accepted
        with pytest.raises(TargetError, match=r"'SM90'.*SM80, SM86"):
            rtx_session.build(net(tmp_path), compute_capability="SM90")

    def test_versions_without_int8_convolutions_are_refused(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt_rtx", "1.6.1.120")
        with pytest.raises(RuntimeUnavailableError, match=r"1\.6\.1\.120 is installed.*1\.7 up to"):
            rtx_session.build(net(tmp_path))

    def test_without_the_package_it_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: None)
        with pytest.raises(RuntimeUnavailableError, match=r"pip install '.*\[tensorrt-rtx\]'"):
            rtx_session.build("m.onnx")

    def test_a_log_without_layers_is_not_taken_for_float(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt_rtx", "1.7.1.116")
        with pytest.raises(ArtefactError, match="holds no layer table"):
            realised_precision(net(tmp_path), "tensorrt-rtx")

    def test_it_runs_where_there_is_a_gpu(self, install: Install, tmp_path: Path) -> None:
        install("tensorrt_rtx", "1.7.1.116")
        path = net(tmp_path)
        expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": images(3)})[0]
        np.testing.assert_array_equal(rtx_session.load(path).run(images(3)), expected)
