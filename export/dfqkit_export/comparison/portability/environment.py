"""Python and ONNX Runtime for another processor, emulated by qemu in user mode: made once, kept in the user's cache.

What belongs here: getting the parts (Debian's and Ubuntu's packages through apt, wheels through pip), which needs no
root and changes nothing of the system, and the command line that starts them. What is run there is `emulated`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from dfqkit_export.backends import DEFAULT
from dfqkit_export.comparison.portability.families import ARM, X86, Family, own_family
from dfqkit_export.errors import RuntimeUnavailableError

_QEMU = {X86: "qemu-x86_64-static", ARM: "qemu-aarch64-static"}
#: What Python, numpy and ONNX Runtime need of a Debian or Ubuntu for another architecture; apt finds what these need.
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
_DEBIAN = {X86: "amd64", ARM: "arm64"}
_WHEELS = ("flatbuffers", "protobuf", "packaging", "numpy")
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
_LONGEST = 1800.0  # seconds that one step of getting the parts may take
_LAST = 600  # characters of what a failed step said


@dataclass(frozen=True, kw_only=True)
class Environment:
    """How a Python with ONNX Runtime is started.

    Attributes:
        command: What stands in front of the program.
        variables: Of the environment, beside this process's own.
        how: In words: "on this machine", or what emulates it.
    """

    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    how: str


def cache() -> Path:
    """Return the folder where environments are kept: that of the user's caches (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfqkit" / "prove"


def environment_of(family: Family, version: str = "") -> Environment:
    """Return how a family's kernels are run here.

    Args:
        family: Which kernels.
        version: Of ONNX Runtime, such as 1.20 or 1.27.0; "" for the installed one, or the family's newest.

    Raises:
        RuntimeUnavailableError: Nothing here can; says why, and the lines that install what is missing.
    """
    native = own_family()
    version = version or ("" if native == family else family.newest)
    if native == family:
        path = _libraries(family, version) if version else ""
        return Environment(
            command=(sys.executable,), variables={"PYTHONPATH": path} if path else {}, how="on this machine"
        )
    if not family.cpu:
        message = f"qemu knows no processor with {family.title.split(', ')[-1]}, and this machine is none"
        raise RuntimeUnavailableError(message)
    if platform.machine() != X86 or sys.platform != "linux":
        message = f"it is emulated on Linux on {X86} alone, and this is {sys.platform} on {platform.machine()}"
        raise RuntimeUnavailableError(message)
    qemu = _qemu(family.machine)
    how = f"{_version_of(qemu)}, -cpu {family.cpu}"
    if family.machine == X86:
        path = _libraries(family, version) if version else os.pathsep.join(_own_libraries())
        own = (str(qemu), "-cpu", family.cpu, os.path.realpath(sys.executable))
        return Environment(command=own, variables={"PYTHONPATH": path}, how=how)
    root = cache() / family.machine / "root"
    found = _python_in(root)
    if found is None:
        raise RuntimeUnavailableError(_unprepared(family))
    command = (str(qemu), "-L", str(root), "-cpu", family.cpu, str(found))
    return Environment(command=command, variables={"PYTHONPATH": _libraries(family, version)}, how=how)


def prepare(family: Family, version: str = "") -> None:
    """Get what `environment_of` needs and does not find; nothing where all is there.

    Raises:
        RuntimeUnavailableError: It cannot be had here; says what failed, and what to do in its place.
    """
    native = own_family() == family
    version = version or ("" if native else family.newest)
    if not native:
        if not family.cpu or platform.machine() != X86 or sys.platform != "linux":
            environment_of(family, version)  # says why not
        if not _have_qemu(family.machine):
            _unpack_packages(cache() / "qemu", _DEBIAN[X86], ("qemu-user-static",), alone=True)
        root = cache() / family.machine / "root"
        if family.machine != X86 and _python_in(root) is None:
            _unpack_packages(root, _DEBIAN[family.machine], _PACKAGES)
    if version and not _site(family, version).is_dir():
        _unpack_wheels(family, version)
    environment_of(family, version)


def _libraries(family: Family, version: str) -> str:
    site = _site(family, version)
    if not site.is_dir():
        raise RuntimeUnavailableError(_unprepared(family, version))
    return str(site)


def _site(family: Family, version: str) -> Path:
    return cache() / family.machine / f"{DEFAULT.package}-{version}-python{_python_of(family)}"


def _python_of(family: Family) -> str:
    """Return the version, such as 3.11, of the Python that runs a family's kernels."""
    python = _python_in(cache() / family.machine / "root") if family.machine != platform.machine() else None
    return python.name.removeprefix("python") if python else f"{sys.version_info.major}.{sys.version_info.minor}"


def _python_in(root: Path) -> Path | None:
    return next(iter(sorted((root / "usr" / "bin").glob("python3.[0-9]*"))), None)


def _own_libraries() -> list[str]:
    """Return the folders in which this Python finds numpy and ONNX Runtime."""
    found = (importlib.util.find_spec(name) for name in ("numpy", DEFAULT.package))
    folders = (str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin)
    return list(dict.fromkeys(folders))


def _have_qemu(machine: str) -> str:
    name = _QEMU[machine]
    kept = cache() / "qemu" / "usr" / "bin" / name
    return shutil.which(name) or (str(kept) if kept.is_file() else "")


def _qemu(machine: str) -> Path:
    found = _have_qemu(machine)
    if not found:
        message = (
            f"{_QEMU[machine]} is not installed: `dfqkit prove --prepare` gets it into {cache()}, or, for the whole "
            "system, `apt-get install -y qemu-user-static`"
        )
        raise RuntimeUnavailableError(message)
    return Path(found)


def _version_of(qemu: Path) -> str:
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout.split()
    return f"qemu {said[2]}" if len(said) > 2 else "qemu"


def _unprepared(family: Family, version: str = "") -> str:
    wanted = f" --runtime {version}" if version and version != family.newest else ""
    return (
        f"Python and ONNX Runtime for {family.machine} are not in {cache()}: run `dfqkit prove --prepare --on "
        f"{family.name}{wanted}`, which gets {', '.join(_PACKAGES)} for {_DEBIAN[family.machine]} through apt and the "
        "wheels through pip, without root"
    )


def _unpack_packages(root: Path, architecture: str, names: tuple[str, ...], *, alone: bool = False) -> None:
    """Get Debian packages of an architecture, with what they need unless ``alone``, and unpack them into a folder.

    apt works on lists and a status of its own, so that neither root nor a foreign architecture of the system is needed.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        message = (
            f"there is no apt-get here to get {', '.join(names)} ({architecture}) with. Install qemu-user-static by "
            "the system's own means; environments for other architectures can be made on Debian or Ubuntu alone"
        )
        raise RuntimeUnavailableError(message)
    work = cache() / f"apt-{architecture}"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": str(work / "state"),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work / "cache"),
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    _do([*apt, "update"])
    archives = work / "cache" / "archives"
    if alone:
        _do([*apt, "download", *names], folder=archives)
    else:
        _do([*apt, "install", "-y", "--download-only", "--no-install-recommends", *names])
    made = root.with_name(root.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for package in sorted(archives.glob("*.deb")):
        _do(["dpkg-deb", "-x", str(package), str(made)])
    made.rename(root)
    shutil.rmtree(work, ignore_errors=True)


def _unpack_wheels(family: Family, version: str) -> None:
    site, python = _site(family, version), _python_of(family)
    made, wheels = site.with_name(site.name + ".part"), site.with_name(site.name + ".wheels")
    for folder in (made, wheels):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    exact = version if version.count(".") > 1 else f"{version}.*"
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_{family.machine}")]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
    pip += ["--no-deps", "--python-version", python, "--implementation", "cp", *platforms, "-d", str(wheels)]
    _do([*pip, f"{DEFAULT.package}=={exact}", *_WHEELS])
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(made)
    shutil.rmtree(wheels)
    made.rename(site)


def _do(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONGEST, cwd=folder)
    except subprocess.TimeoutExpired:
        message = f"`{' '.join(command[:2])} ... {command[-1]}` took more than {_LONGEST:.0f} s"
        raise RuntimeUnavailableError(message) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_LAST:]
        message = f"`{command[0]} ... {' '.join(command[-2:])}` failed: {said}"
        raise RuntimeUnavailableError(message)
