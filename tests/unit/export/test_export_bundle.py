"""Bundles: what is written comes back and runs, and what could harm is refused."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from dfqkit_export.bundle import Order, archive, entries, open_bundle, write_bundle, writing
from dfqkit_export.bundle.card import escaped
from dfqkit_export.errors import ArtefactError
from dfqkit_export.sentinel import read_sentinel, sentinel_bytes, write_sentinel
from tests._messages import raises_naming
from tests.unit.export._bundles import SPEC, TEACHER, list_run, write_run
from tests.unit.export.conftest import QdqBuilder

LABELS = [f"thing {k}" for k in range(10)]
CPP = "samples/cpp/main.cpp"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", QdqBuilder)


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder; read only."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    write_bundle(Order(run=run, out=folder / "b", labels=folder / "labels.txt"))
    return folder / "b"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A bundle's folder to break."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads((folder / "manifest.json").read_text())
    change(facts)
    (folder / "manifest.json").write_text(json.dumps(facts))


def refused(path: Path, message: str) -> None:
    with pytest.raises(ArtefactError, match=message), open_bundle(path) as found:
        _ = found.sentinel, found.report, found.recipe, found.labels


def _killed(moment: int, action: Callable[[], object]) -> bool:
    """Do it in a child that dies before its so many-th rename, sync or removal; return whether it came to that."""
    child = os.fork()
    if not child:
        left = [moment]

        def dying(does: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    os._exit(9)
                return does(*arguments, **options)

            return step

        for owner, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "rmdir")):
            setattr(owner, name, dying(getattr(owner, name)))
        writing.exchange = dying(writing.exchange)
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


class TestWriting:
    def test_it_holds_what_is_needed(self, made: Path) -> None:
        names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
        assert names == {
            "MODEL_CARD.md", "labels.txt", "manifest.json", "model.onnx", "recipe.yaml", "report.json",
            "samples/README.md", "samples/cpp/CMakeLists.txt", CPP, "samples/expected.bin", "samples/inputs.bin",
            "samples/inputs.txt",
            "samples/python/classify.py", "samples/trtexec.md", "sentinel.safetensors",
        }  # fmt: skip
        facts = json.loads((made / "manifest.json").read_text())
        assert set(facts["files"]) == names - {"manifest.json"}
        for name, entry in facts["files"].items():
            data = (made / name).read_bytes()
            assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    def test_folder_zip_and_run_say_the_same(self, made: Path, run: Path, tmp_path: Path) -> None:
        write_bundle(Order(run=run, out=tmp_path / "b.zip"))
        for path in (made, tmp_path / "b.zip", run):
            with open_bundle(path) as found:
                assert (found.name, found.target, found.image) == ("toy/dfq-w8a8-ort", "onnxruntime", SPEC)
                assert found.teacher == {"name": "toy", "sha256": TEACHER}
                assert found.synthesis == {"method": "dfq", "data_free": True, "noise": False}
                assert (found.quant, found.command) == ({"bits": "w8a8"}, "dfqkit run toy/dfq-w8a8-ort")
                assert found.report is not None
                assert found.report.title == found.name
                assert found.recipe is not None
                assert found.recipe.startswith("schema: 1")  # with a tag that nobody resolves
                assert found.model.read_bytes() == (run / "model.onnx").read_bytes()
                assert found.damaged() == []
                assert found.labels == (tuple(LABELS) if path == made else None)
                if path != run:
                    assert found.sentinel is not None
                    assert len(found.sentinel) > 50
        assert not found.model.exists() or path == run

    def test_equal_runs_give_equal_bytes(self, run: Path, tmp_path: Path) -> None:
        for name in ("a.zip", "b.zip"):
            write_bundle(Order(run=run, out=tmp_path / name))
        assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.zip") as file:
            assert file.namelist() == sorted(file.namelist())
            assert {entry.date_time[0] for entry in file.infolist()} == {1980}

    def test_the_runs_own_sentinel_set_or_another_is_taken(self, run: Path, made: Path, tmp_path: Path) -> None:
        own = Path(shutil.copytree(run, tmp_path / "run"))
        shutil.copy(made / "sentinel.safetensors", own / "sentinel.safetensors")
        list_run(own)
        shutil.rmtree(own / "images")
        write_bundle(Order(run=own, out=tmp_path / "b"))
        assert (tmp_path / "b" / "sentinel.safetensors").read_bytes() == (made / "sentinel.safetensors").read_bytes()
        (own / "sentinel.safetensors").unlink()
        list_run(own)
        with raises_naming(ArtefactError, "images/grading.safetensors", "dfqkit sentinel"):
            write_bundle(Order(run=own, out=tmp_path / "c"))
        write_bundle(Order(run=own, out=tmp_path / "c", sentinel=made / "sentinel.safetensors"))

    def test_a_changed_run_is_not_bundled(self, run: Path, tmp_path: Path) -> None:
        own = Path(shutil.copytree(run, tmp_path / "run"))
        (own / "report.json").write_text((own / "report.json").read_text() + " ")
        with raises_naming(ArtefactError, "report.json"):
            write_bundle(Order(run=own, out=tmp_path / "b"))
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize("lines", [LABELS[:9], [*LABELS, "x"], [*LABELS[:9], ""], [*LABELS[:9], "a\x1b[31m"]])
    def test_labels_that_do_not_fit(self, run: Path, tmp_path: Path, lines: list[str]) -> None:
        (tmp_path / "l.txt").write_text("\n".join(lines) + "\n")
        with raises_naming(ArtefactError, "10", "name for each class"):
            write_bundle(Order(run=run, out=tmp_path / "b", labels=tmp_path / "l.txt"))

    @pytest.mark.parametrize("out", ["b", "b.zip"])
    def test_an_older_bundle_is_replaced(self, run: Path, tmp_path: Path, out: str) -> None:
        write_bundle(Order(run=run, out=tmp_path / out))
        write_bundle(Order(run=run, out=tmp_path / out))
        assert [path.name for path in tmp_path.iterdir()] == [out]
        with open_bundle(tmp_path / out) as found:
            assert found.damaged() == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="a child dies without any of its clean-up")
    @pytest.mark.parametrize("swaps", [True, False], ids=["one step", "two renames"])
    def test_a_kill_at_any_moment_leaves_a_whole_bundle(
        self, run: Path, made: Path, tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not swaps:
            monkeypatch.setattr(writing, "exchange", lambda *_: False)
        facts = json.loads((made / "manifest.json").read_text())
        old, new = {}, {}
        for files, names in ((old, ["model.onnx"]), (new, ["model.onnx", "labels.txt"])):
            files |= {name: (made / name).read_bytes() for name in names}
            listed = {name: facts["files"][name] for name in names}
            files["manifest.json"] = json.dumps({**facts, "files": listed}).encode()
        seen = []
        for moment in range(1, 100):
            out = tmp_path / str(moment) / "b"
            writing._write_folder(out, old)
            killed = _killed(moment, functools.partial(writing._write_folder, out, new))
            with open_bundle(out) as found:
                assert (found.damaged(), found.unlisted()) == ([], set())
                seen.append("labels.txt" in found.files)
            if not killed:
                break
            if not out.exists():
                write_bundle(Order(run=run, out=out))
                assert [path.name for path in out.parent.iterdir()] == ["b"]
        assert len(seen) > 10
        assert seen == sorted(seen)
        assert {False, True} == set(seen)

    def test_what_is_not_ours_is_not_replaced(self, run: Path, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")
        (tmp_path / "mine.zip").write_text("x")
        (tmp_path / "link").symlink_to(bundle)
        for name in ("mine", "mine.zip", "link"):
            with pytest.raises(ArtefactError, match=r"is there already, and is no bundle|is a link"):
                write_bundle(Order(run=run, out=tmp_path / name))
        assert (tmp_path / "mine" / "thesis.tex").exists()
        (bundle / "notes.txt").write_text("mine")
        with raises_naming(ArtefactError, "notes.txt"):
            write_bundle(Order(run=run, out=bundle))
        with pytest.raises(ArtefactError, match=r"not a bundle as it was written"):
            write_bundle(Order(run=run, out=run))
        with pytest.raises(ArtefactError, match=r"is not what would replace it"):
            write_bundle(Order(run=run, out=Path(shutil.copytree(bundle, tmp_path / "dir.zip"))))

    def test_the_card_says_what_it_is(self, made: Path) -> None:
        card = (made / "MODEL_CARD.md").read_text()
        for text in (
            "# toy/dfq-w8a8-ort", TEACHER, "dfqkit run toy/dfq-w8a8-ort", "made from the teacher alone",
            "| top1 | this file | real:toys | 91.5 % | 2 | 200 |", "**Warning.** Made of &lt;b&gt;toys&lt;/b&gt;.",
        ):  # fmt: skip
            assert text in card
        assert "<b>" not in card

    def test_names_cannot_write_html_or_markdown(self, tmp_path: Path) -> None:
        name = "<script>alert(1)</script>[x](javascript:y)|*`"
        write_run(tmp_path / "run", QdqBuilder, name=name, teacher="<img src=x>")
        write_bundle(Order(run=tmp_path / "run", out=tmp_path / "b"))
        card = (tmp_path / "b" / "MODEL_CARD.md").read_text()
        assert "<script" not in card
        assert "<img" not in card
        assert "](" not in card
        assert "&lt;script&gt;" in card
        assert escaped("a\n# b\x1b") == "a \\# b"

    def test_noise_is_told(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", QdqBuilder, synthesizer="noise")
        with open_bundle(tmp_path / "run") as found:
            assert found.synthesis["noise"] is True

    @pytest.mark.parametrize("target", ["tensorrt", "tensorrt-10", "tensorrt-11"])
    def test_trtexec_lines_only_for_files_of_its_form(self, made: Path, tmp_path: Path, target: str) -> None:
        assert "needs a student of its own" in "".join((made / "samples/trtexec.md").read_text().replace("\n", " "))
        assert "trtexec --onnx" not in (made / "samples/trtexec.md").read_text()
        assert "--runtime-b" not in (made / "samples/README.md").read_text()
        write_run(tmp_path / "run", QdqBuilder, target=target)
        write_bundle(Order(run=tmp_path / "run", out=tmp_path / "b"))
        text = (tmp_path / "b" / "samples/trtexec.md").read_text()
        shapes = "--minShapes=x:1x3x8x8 --optShapes=x:8x3x8x8 --maxShapes=x:32x3x8x8"
        assert text.count(f"trtexec --onnx=model.onnx --saveEngine=model.plan {shapes}") == 2
        assert "--stronglyTyped" in text.split("TensorRT 10,")[1]
        assert "--stronglyTyped" not in text.split("TensorRT 10,")[0]
        assert "These lines were not run" in text
        assert f"--target {target}`" in text
        assert "--shapes=x:4x3x8x8" in text
        assert "--loadInputs=x:samples/inputs.bin --loadRefOutputs=" in text
        assert "compare model.onnx --runtime-b tensorrt --images" in (tmp_path / "b" / "samples/README.md").read_text()


class TestPythonSample:
    def sample(self, bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        # What an edge box does not have is not there to be imported.
        program = (
            "import runpy, sys\n"
            "for name in ('torch', 'onnx', 'dfqkit', 'dfqkit_export', 'safetensors', 'PIL', 'yaml'): "
            "sys.modules[name] = None\n"
            f"sys.argv = ['classify.py', *{list(arguments)!r}]\n"
            f"runpy.run_path({str(bundle / 'samples/python/classify.py')!r}, run_name='__main__')"
        )
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    def test_it_checks_itself(self, bundle: Path) -> None:
        done = self.sample(bundle)
        assert (done.returncode, done.stderr) == (0, "")
        assert "difference from the expected logits: 0; as expected" in done.stdout
        assert "thing " in done.stdout

    def test_it_says_when_the_model_is_another(self, bundle: Path) -> None:
        expected = np.fromfile(bundle / "samples/expected.bin", "<f4")
        (-expected).tofile(bundle / "samples/expected.bin")
        done = self.sample(bundle)
        assert done.returncode == 1
        assert "NOT as expected" in done.stdout

    def test_it_reads_the_sentinel_set(self, bundle: Path) -> None:
        sentinel = read_sentinel(bundle / "sentinel.safetensors")
        session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
        logits = session.run(None, {"x": sentinel.normalized()})[0]
        share = 100 * (logits.argmax(1) == sentinel.answers["logits"].argmax(1)).mean()
        done = self.sample(bundle, "--sentinel")
        assert done.stdout.strip() == f"{len(sentinel)} images, the class is the float teacher's in {share:.2f} %"

    def test_it_classifies_an_image(self, bundle: Path, tmp_path: Path) -> None:
        sentinel = read_sentinel(bundle / "sentinel.safetensors")
        np.save(tmp_path / "i.npy", sentinel.images[3].transpose(1, 2, 0))
        session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
        label = session.run(None, {"x": sentinel.normalized()[3:4]})[0].argmax()
        done = self.sample(bundle, str(tmp_path / "i.npy"))
        assert done.stdout.startswith(f"{tmp_path / 'i.npy'}[0]: thing {label} ")
        np.save(tmp_path / "i.npy", np.zeros((3, 8, 8), np.uint8))
        assert self.sample(bundle, str(tmp_path / "i.npy")).returncode == 2


# What the sample uses of ONNX Runtime's C++ header, declared by hand: enough to see that the program is C++.
_DECLARATIONS = """
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>
#define ORTCHAR_T char
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING }; enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
namespace Ort {
struct Env { Env(OrtLoggingLevel, const char*); };
struct SessionOptions { SessionOptions& AddConfigEntry(const char*, const char*); };
struct RunOptions { explicit RunOptions(std::nullptr_t); };
struct AllocatorWithDefaultOptions {};
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType); };
struct Shapes { std::vector<std::int64_t> GetShape() const; std::size_t GetElementCount() const; };
struct TypeInfo { Shapes GetTensorTypeAndShapeInfo() const; };
struct Value {
  template <typename T> static Value CreateTensor(const MemoryInfo&, T*, std::size_t, const std::int64_t*, std::size_t);
  template <typename T> const T* GetTensorData() const;
  Shapes GetTensorTypeAndShapeInfo() const;
};
struct Session {
  Session(Env&, const ORTCHAR_T*, const SessionOptions&);
  std::unique_ptr<char> GetInputNameAllocated(std::size_t, AllocatorWithDefaultOptions&) const;
  std::unique_ptr<char> GetOutputNameAllocated(std::size_t, AllocatorWithDefaultOptions&) const;
  TypeInfo GetInputTypeInfo(std::size_t) const;
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, std::size_t, const char* const*,
                         std::size_t);
};
}
"""


def headers() -> Path | None:
    """The folder of ONNX Runtime's headers on this machine, if any."""
    given = os.environ.get("DFQKIT_ORT_INCLUDE")
    roots = [Path(given)] if given else [Path("/usr/include"), Path("/usr/local/include"), Path("/opt/onnxruntime")]
    for root in roots:
        for place in (".", "include", "onnxruntime", "onnxruntime/core/session", "include/onnxruntime/core/session"):
            if (root / place / "onnxruntime_cxx_api.h").exists():
                return root / place
    return None


class TestCppSample:
    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
    def test_it_is_cpp(self, made: Path, tmp_path: Path) -> None:
        (tmp_path / "onnxruntime_cxx_api.h").write_text(_DECLARATIONS)
        command = [
            "g++",
            "-std=c++17",
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{tmp_path}",
            str(made / CPP),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
    def test_it_runs(self, bundle: Path, tmp_path: Path) -> None:
        include = headers()
        if include is None:
            pytest.skip("no onnxruntime_cxx_api.h here; DFQKIT_ORT_INCLUDE names its folder (the wheel has no headers)")
        libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
        if not libraries:
            pytest.skip("this onnxruntime wheel has no libonnxruntime.so to link against")
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (tmp_path / name).symlink_to(libraries[0])
        command = [
            "g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(include), str(bundle / CPP), "-o",
            str(tmp_path / "classify"), f"-L{tmp_path}", "-lonnxruntime", f"-Wl,-rpath,{tmp_path}",
        ]  # fmt: skip
        subprocess.run(command, check=True)
        arguments = [str(bundle / name) for name in ("model.onnx", "samples/inputs.bin", "samples/expected.bin")]
        done = subprocess.run([str(tmp_path / "classify"), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "; as expected" in done.stdout
        (-np.fromfile(arguments[2], "<f4")).tofile(arguments[2])
        assert (
            subprocess.run([str(tmp_path / "classify"), *arguments], capture_output=True, check=False).returncode == 1
        )
        assert (
            subprocess.run([str(tmp_path / "classify"), "x", "y", "z"], capture_output=True, check=False).returncode
            == 2
        )


def test_opening_and_choosing_need_no_torch(run: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'yaml', 'rich', 'pydantic', 'PIL', 'torchvision', 'brevitas'):\n"
        "    sys.modules[name] = None\n"
        "from dfqkit.cli import main\n"
        f"folder, run = {str(tmp_path)!r}, {str(run)!r}\n"
        "assert main(['bundle', run, '--out', folder + '/b.zip']) == 0\n"
        "assert main(['sentinel', '--model', run + '/model.onnx', '--teacher', run + '/teacher.onnx', '--images',\n"
        "             run + '/images/grading.safetensors', '--out', folder + '/s.safetensors']) == 0\n"
        "from dfqkit_export.bundle import open_bundle\n"
        "with open_bundle(folder + '/b.zip') as found: assert found.sentinel and found.report and not found.damaged()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestDamage:
    def test_it_is_named(self, bundle: Path) -> None:
        (bundle / "recipe.yaml").write_text("schema: 2\n")
        (bundle / "samples/inputs.bin").unlink()
        with open_bundle(bundle) as found:
            assert sorted(found.damaged()) == ["recipe.yaml", "samples/inputs.bin"]

    def test_a_stale_sentinel_set_does_not_fit(self, bundle: Path) -> None:
        sentinel = read_sentinel(bundle / "sentinel.safetensors")
        write_sentinel(bundle / "sentinel.safetensors", sentinel)
        with open_bundle(bundle) as found:
            assert found.damaged() == []
        changed = sentinel_bytes(sentinel).replace(b'\\"name\\": \\"toy\\"', b'\\"name\\": \\"tox\\"')
        (bundle / "sentinel.safetensors").write_bytes(changed)
        with open_bundle(bundle) as found:
            assert found.damaged() == ["sentinel.safetensors"]

    def test_a_run_for_several_targets_is_neither_checked_nor_bundled(self, run: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(run, tmp_path / "several"))
        manifest(
            folder,
            lambda facts: facts["stages"]["export"]["files"].update({"model.openvino.onnx": {"sha256": TEACHER}}),
        )
        refused(folder, r"several targets.*model\.onnx, model\.openvino\.onnx.*--set target=NAME")

    def test_an_unfinished_run(self, run: Path, tmp_path: Path) -> None:
        own = Path(shutil.copytree(run, tmp_path / "run"))
        manifest(own, lambda facts: facts["stages"]["export"].update(status="open"))
        refused(own, r"has not exported its model yet")

    def test_what_is_nothing(self, tmp_path: Path) -> None:
        refused(tmp_path / "nowhere", r"is not there")
        refused(tmp_path, r"no bundle and no folder of a run")


BAD_NAMES = [
    "../x", "/etc/passwd", "a/../../x", "C:/x", "a\\b", "", ".", "a//b", "a/./b", "x\n", "\x1b[2J", "con:", "a /b",
    "a./b", "x" * 300, "NUL", "samples/aux.txt", "com1.onnx",
]  # fmt: skip


class TestHostileManifests:
    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_names_that_lead_elsewhere(self, bundle: Path, name: str) -> None:
        manifest(bundle, lambda facts: facts["files"].update({name: facts["files"]["model.onnx"]}))
        refused(bundle, r"lists the file name .* not allowed")

    @pytest.mark.parametrize("name", BAD_NAMES[:4])
    def test_names_in_a_runs_manifest_are_not_followed(self, run: Path, tmp_path: Path, name: str) -> None:
        own = Path(shutil.copytree(run, tmp_path / "run"))
        manifest(own, lambda facts: facts["stages"]["export"]["files"].update({name: {"sha256": "a" * 64}}))
        with open_bundle(own) as found:
            assert name not in found.files

    @pytest.mark.parametrize("name", ["model.onnx", "recipe.yaml", "manifest.json", "sentinel.safetensors"])
    def test_links(self, bundle: Path, tmp_path: Path, name: str) -> None:
        (bundle / name).rename(tmp_path / "outside")
        (bundle / name).symlink_to(tmp_path / "outside")
        refused(bundle, r"is a symbolic link")

    def test_a_link_on_the_way(self, bundle: Path, tmp_path: Path) -> None:
        (bundle / "samples").rename(tmp_path / "samples")
        (bundle / "samples").symlink_to(tmp_path / "samples")
        refused(bundle, r"samples' is a symbolic link")

    def test_links_in_a_runs_folder(self, run: Path, tmp_path: Path) -> None:
        for name in ("model.onnx", "report.json"):
            own = Path(shutil.copytree(run, tmp_path / name / "run"))
            (own / name).unlink()
            (own / name).symlink_to(run / name)
            refused(own, r"is a symbolic link")

    @pytest.mark.parametrize("quant", ["[" * 100_000, '{"bits": NaN}', '{"bits": 1e999}', "7", '{"a": 1, "a": 2}'])
    def test_metadata_of_a_runs_model_that_make_no_sense(self, tmp_path: Path, quant: str) -> None:
        refused(write_run(tmp_path / "run", QdqBuilder, quant=quant), r"contradicts itself")

    def test_a_pipe(self, bundle: Path) -> None:
        (bundle / "recipe.yaml").unlink()
        os.mkfifo(bundle / "recipe.yaml")
        refused(bundle, r"is not a plain file")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda facts: facts.update(schema=2), r"schema 2; read are .* upgrade"),
            (lambda facts: facts.update(schema=True), r"schema True"),
            (lambda facts: facts.update(schema="1"), r"schema '1'"),
            (lambda facts: facts.update(kind="other"), r"kind 'other'"),
            (lambda facts: facts.update(kind=None), r"kind None"),
            (lambda facts: facts.pop("image"), r"contradicts itself"),
            (lambda facts: facts["image"].update(shape=[3, 8]), r"shape"),
            (lambda facts: facts.update(teacher="x"), r"contradicts itself"),
            (lambda facts: facts.update(files=[]), r"contradicts itself"),
            (lambda facts: facts["files"]["model.onnx"].update(sha256="x"), r"the sha256 of"),
            (lambda facts: facts["files"].update({"MODEL.onnx": {"sha256": "a" * 64}}), r"twice"),
            (
                lambda facts: facts["files"].update({f"f{i}": {"sha256": "a" * 64} for i in range(1001)}),
                r"files; at most",
            ),
            (lambda facts: facts.update(name="a\x1b[31m"), r"no plain text"),
            (lambda facts: facts.update(name=["a"]), r"no plain text"),
            (lambda facts: facts.update(command="a\nb"), r"no plain text"),
            (lambda facts: facts["synthesis"].update(noise="no"), r"neither true nor false"),
            (lambda facts: facts["synthesis"].update(data_free="yes"), r"neither true nor false"),
        ],
    )
    def test_facts_that_make_no_sense(
        self, bundle: Path, change: Callable[[dict[str, Any]], Any], message: str
    ) -> None:
        manifest(bundle, change)
        refused(bundle, message)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", "[" * 200_000, '{"schema": 1, "schema": 1}', "\udcff", '{"schema": ' + "9" * 5000 + "}"]
    )
    def test_texts_that_are_none(self, bundle: Path, text: str) -> None:
        (bundle / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(bundle, r"is not JSON|must hold an object|Cannot read")

    @pytest.mark.parametrize("name", ["manifest.json", "report.json", "recipe.yaml", "labels.txt"])
    def test_texts_without_end(self, bundle: Path, name: str) -> None:
        with (bundle / name).open("ab") as file:
            file.truncate(entries.MAX_JSON + 1)
        refused(bundle, r"is larger than the [\d,]+ bytes")

    def test_a_giant_header(self, bundle: Path) -> None:
        with (bundle / "sentinel.safetensors").open("r+b") as file:
            file.write((2**62).to_bytes(8, "little"))
        refused(bundle, r"sentinel.safetensors' is not a whole")

    def test_no_model(self, bundle: Path) -> None:
        (bundle / "model.onnx").unlink()
        refused(bundle, r"has no model.onnx")

    def test_html_in_names_stays_text(self, bundle: Path) -> None:
        manifest(bundle, lambda facts: facts.update(name="<script>alert(1)</script>"))
        with open_bundle(bundle) as found:
            assert escaped(found.name) == "&lt;script&gt;alert\\(1\\)&lt;/script&gt;"


def zip_of(bundle: Path, *more: tuple[Any, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(bundle.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(bundle).as_posix())
        for entry, data in more:
            file.writestr(entry, data)
    return buffer.getvalue()


class TestHostileZips:
    @pytest.mark.parametrize(
        "name", ["../evil", "/tmp/evil", "a/../../evil", "C:/evil", "a\\..\\evil", "x\x01y", "samples"]
    )
    def test_names_that_lead_elsewhere_are_not_followed(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a" / "b"))
        (tmp_path / "b.zip").write_bytes(zip_of(bundle, (name, b"x")))
        with open_bundle(tmp_path / "b.zip") as found:
            assert found.damaged() == []
            assert {path.name for path in found.root.iterdir()} == {
                "manifest.json", "model.onnx", "sentinel.safetensors", "report.json", "recipe.yaml", "labels.txt"
            }  # fmt: skip
        assert not list(tmp_path.rglob("*evil*"))

    def test_a_file_that_is_no_zip(self, bundle: Path) -> None:
        refused(bundle / "model.onnx", r"is no zip, or a damaged one. Give a bundle's folder")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_a_name_twice(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "b.zip").write_bytes(zip_of(bundle, ("model.onnx", b"x")))
        refused(tmp_path / "b.zip", r"twice")

    def test_a_link_is_its_text(self, bundle: Path, tmp_path: Path) -> None:
        entry = zipfile.ZipInfo("labels.txt")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        (bundle / "labels.txt").unlink()
        (tmp_path / "b.zip").write_bytes(zip_of(bundle, (entry, b"/etc/passwd")))
        refused(tmp_path / "b.zip", r"has 1 lines; needed are 10")

    @pytest.mark.parametrize("name", ["model.onnx", "README"])
    def test_a_bomb(self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(archive, "ALWAYS", 2**20)
        (bundle / name).unlink(missing_ok=True)
        manifest(bundle, lambda facts: facts["files"].update({name: {"sha256": "0" * 64}}))
        (tmp_path / "b.zip").write_bytes(zip_of(bundle, (name, bytes(40 * 2**20))))
        with pytest.raises(ArtefactError, match=r"bytes unpacked; at most"), open_bundle(tmp_path / "b.zip") as found:
            found.damaged()

    def test_a_bomb_that_lies_about_its_size(self, bundle: Path, tmp_path: Path) -> None:
        size = 30 * 2**20
        (bundle / "report.json").unlink()
        data = zip_of(bundle, ("report.json", bytes(size)))
        assert data.count(size.to_bytes(4, "little")) == 2
        (tmp_path / "b.zip").write_bytes(data.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little")))
        refused(tmp_path / "b.zip", r"cannot be read as a zip")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_cut_short(self, bundle: Path, tmp_path: Path, share: float) -> None:
        data = zip_of(bundle)
        (tmp_path / "b.zip").write_bytes(data[: int(share * len(data))])
        refused(tmp_path / "b.zip", r"cannot be read")

    def test_a_flipped_bit_is_noticed(self, bundle: Path, tmp_path: Path) -> None:
        data = bytearray(zip_of(bundle))
        data[len(data) // 2] ^= 1
        (tmp_path / "b.zip").write_bytes(data)
        with pytest.raises(ArtefactError, match=r"cannot be read as a zip"), open_bundle(tmp_path / "b.zip") as found:
            found.damaged()

    def test_nothing_is_left_behind(self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        (tmp_path / "b.zip").write_bytes(zip_of(bundle))
        with open_bundle(tmp_path / "b.zip") as found:
            assert found.model.is_relative_to(tmp_path / "temporary")
        with pytest.raises(KeyboardInterrupt), open_bundle(tmp_path / "b.zip"):
            raise KeyboardInterrupt
        assert not list((tmp_path / "temporary").iterdir())
        manifest(bundle, lambda facts: facts.update(schema=2))
        (tmp_path / "b.zip").write_bytes(zip_of(bundle))
        refused(tmp_path / "b.zip", r"schema 2")
        assert not list((tmp_path / "temporary").iterdir())
