"""Parts on two machines of a Ray cluster, each a process of its own here: the bytes of those made in order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path

from ray.cluster_utils import Cluster

from dfqkit.cli import main

sys.path.insert(0, "tests/benchmarks")
from cluster import children, digest

out = Path(sys.argv[1])
words = ["synthesize", "digits/zeroq-w8a8-ort", "--n", "64", "--shard", "16", "--set", "synthesis.steps=120", "-q"]
words += ["--set", "synthesis.batch=16", "--out", str(out)]


def made(*more):
    assert main([*words, *more]) == 0
    found = digest(out)
    out.rename(out.with_name(f"{out.name}-{len(more)}"))
    return found


def kill_one():
    while not (out / "parts").exists() or not list((out / "parts").glob("*.json")):
        time.sleep(0.05)
    for _ in range(600):
        busy = [pid for pid, title in children(os.getpid()) if title.startswith("ray::_one")]
        if busy:
            os.kill(busy[0], signal.SIGKILL)
            print("killed one", flush=True)
            return
        time.sleep(0.05)


in_order = made("--independent")
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
killer = threading.Thread(target=kill_one)
killer.start()
assert made("--cluster", cluster.address) == in_order
killer.join()
os.environ["ATEN_CPU_CAPABILITY"] = "default"  # as a machine of another kind has it
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
assert main([*words, "--cluster", cluster.address]) == 2
print("as it should be")
"""


@pytest.mark.slow
def test_two_machines_with_a_worker_killed_make_what_is_made_in_order_and_another_kind_is_refused(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    path = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "set")],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=900,
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "killed one" in done.stdout
    assert "as it should be" in done.stdout
    assert "several kinds (instructions " in done.stderr
