"""OpenVINO as a plugin of ONNX Runtime: what is said where it is not, and what it computes where it is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dfqkit.students.onnx_file import write_qdq
from dfqkit_export.backends import get_backend, get_target, witness_for
from dfqkit_export.backends.onnxruntime import openvino_provider
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.bundle import Order, write_bundle
from dfqkit_export.comparison.portability import FAMILIES
from dfqkit_export.comparison.portability.environment import environment_of
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from dfqkit_export.images.inputs import random_inputs
from dfqkit_export.onnxfile.model import load_onnx
from tests._toys import student
from tests.unit.export._bundles import write_run

NAME = "onnxruntime-openvino"


def device(provider: str, **metadata: str) -> Any:
    return SimpleNamespace(ep_name=provider, ep_metadata=metadata, device=SimpleNamespace(vendor="AMD"))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for ONNX Runtime with the plugin, which offers no device until a test says so."""
    import onnxruntime

    found = SimpleNamespace(devices=[device("CPUExecutionProvider")], registered=[], settings={}, given=[])
    settings = SimpleNamespace(
        add_session_config_entry=found.settings.__setitem__,
        add_provider_for_devices=lambda devices, options: found.given.append((devices, options)),
    )
    found.SessionOptions = lambda: settings
    found.get_ep_devices = lambda: found.devices
    found.register_execution_provider_library = lambda *words: found.registered.append(words)
    found.InferenceSession = lambda path, _: onnxruntime.InferenceSession(path)
    plugin = SimpleNamespace(get_library_path=lambda: "lib.so")
    modules = {"onnxruntime": found, "onnxruntime_ep_openvino": plugin}
    monkeypatch.setattr(openvino_provider, "import_module", modules.__getitem__)
    monkeypatch.setattr(openvino_provider, "_REGISTERED", set())
    monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: object())
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_qdq(student("residual", "w8a8", NAME), get_target(NAME), tmp_path / "m.onnx", metadata={})
    return tmp_path / "m.onnx"


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    monkeypatch.setattr(
        "dfqkit_export.backends.base.find_spec", lambda name: None if name == "onnxruntime_ep_openvino" else object()
    )
    assert "[openvino-ep]'" in get_backend(NAME).missing()


def test_a_processor_that_is_not_served_is_told_and_the_library_registered_once(runtime: SimpleNamespace) -> None:
    for _ in range(2):
        assert get_backend(NAME).missing().endswith("serves processors of Intel, and finds here: AMD")
    assert runtime.registered == [("OpenVINOExecutionProvider", "lib.so")]


def test_the_cpu_takes_the_whole_file_or_none_of_it(runtime: SimpleNamespace, file: Path) -> None:
    own = device("OpenVINOExecutionProvider", ov_device="CPU")
    runtime.devices += [device("OpenVINOExecutionProvider", ov_device="NPU"), own]
    session = get_backend(NAME).load(file, SimpleNamespace(threads=2))  # type: ignore[arg-type]
    ((devices, options),) = runtime.given
    assert devices == [own]
    hints = json.loads(options["load_config"])["CPU"]
    assert (hints["INFERENCE_PRECISION_HINT"], hints["INFERENCE_NUM_THREADS"]) == ("f32", "2")
    assert hints["ENABLE_CPU_PINNING"] == "NO"
    assert runtime.settings == {"session.disable_cpu_ep_fallback": "1"}
    images = random_inputs(load_onnx(file), 3).images
    assert np.array_equal(session.run(images), OrtSession(file).run(images))

    real = runtime.InferenceSession
    runtime.InferenceSession = lambda _, settings: real(b"no model", settings)
    with pytest.raises(ArtefactError, match="not accepted by ONNX Runtime with OpenVINO"):
        openvino_provider.OpenVinoProviderSession(file)


def test_openvino_says_what_runs_in_integers_and_a_bundle_how_it_is_run(tmp_path: Path, qdq: Any) -> None:
    witness = witness_for(get_target(NAME))
    assert witness is not None
    assert witness.name == "openvino"
    write_bundle(Order(run=write_run(tmp_path / "run", qdq, target=NAME), out=tmp_path / "b"))
    assert f"--runtime-b {NAME} --images" in (tmp_path / "b" / "samples/README.md").read_text()


@pytest.mark.slow
def test_the_plugin_computes_what_the_file_says(file: Path, tmp_path: Path) -> None:
    """Where this processor is not Intel's, an emulated one is: that shows numbers, never speed."""
    if importlib.util.find_spec("onnxruntime_ep_openvino") is None:
        pytest.skip("needs onnxruntime-ep-openvino (extra openvino-ep)")
    command: tuple[str, ...] = (sys.executable,)
    if openvino_provider.missing_device():
        try:
            command = environment_of(FAMILIES["avx2"]).command
        except RuntimeUnavailableError as error:
            pytest.skip(f"no processor of Intel, and none emulated: {error}")
    images = random_inputs(load_onnx(file), 16).images
    np.save(tmp_path / "x.npy", images)
    program = (
        "import sys, numpy as np\n"
        "from dfqkit_export.backends.opening import open_session\n"
        f"found = open_session({NAME!r}, sys.argv[1], threads=1).run(np.load('x.npy'))\n"
        "np.save('y.npy', found)\n"
    )
    path = os.pathsep.join(each for each in sys.path if each)
    words = [*command, "-c", program, str(file)]
    subprocess.run(words, check=True, timeout=600, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert np.array_equal(np.load(tmp_path / "y.npy"), OrtSession(file, optimized=False).run(images))
