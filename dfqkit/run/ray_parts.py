"""Parts on Ray: which are sent when, what comes back, and what is said of one that fails.

What belongs here: all that knows Ray, which is imported once it is asked for. Its scheduler places parts and does those
of a lost worker again; files travel through a folder that all machines share.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from dfqkit.progress import Bar
from dfqkit.run.parts import Executor, InOrder, Job, Told, machine, parted
from dfqkit_export import errors
from dfqkit_export.errors import (
    ArtefactError,
    DfqkitError,
    MissingExtraError,
    RuntimeCrashedError,
    RuntimeUnavailableError,
)
from dfqkit_export.lazy import install_hint

#: How often a part is done again whose worker was lost: killed, out of memory, or with its machine.
_AGAIN = 10
#: Seconds between two signs of life of a part, and between two looks at them.
_EVERY = 1.0
_STORE = 100 * 2**20  # bytes; nothing but results of a few lines goes through Ray's own store
_LOG_LINES = 30


def executor(cluster: str | None, workers: int | None = None) -> Executor:
    """Return where parts are done.

    Args:
        cluster: None for this process; ``local`` for Ray on this machine, ``auto`` for the Ray cluster that this
            machine is part of, else the address of one.
        workers: Parts at a time, at the most; None for as many as there are cores for.

    Raises:
        MissingExtraError: When Ray is asked for and not installed.
    """
    if cluster is None:
        return InOrder()
    if find_spec("ray") is None:
        message = (
            f"--cluster {cluster} needs Ray, which is not installed: it is the extra 'ray'. Run {install_hint('ray')}, "
            "or leave --cluster out, which does all parts in order."
        )
        raise MissingExtraError(message)
    return OnRay(cluster, workers)


class _Board:
    """Where parts write how far they are."""

    def __init__(self) -> None:
        self.news: dict[int, tuple[float, dict[str, float]]] = {}

    def tell(self, index: int, share: float, terms: dict[str, float]) -> None:
        self.news[index] = share, terms

    def take(self) -> dict[int, tuple[float, dict[str, float]]]:
        news, self.news = self.news, {}
        return news


def _one(job: dict[str, Any], index: int, board: Any, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Do one part in a worker, once that ``before`` it has ended; an error comes back as text, with the log."""
    if before is not None and "result" not in before:
        return before
    threads = str(job["threads"])
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    import torch

    torch.set_num_threads(job["threads"])
    log, last = io.StringIO(), [time.monotonic()]
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)

    def tell(share: float, **terms: float) -> None:
        if time.monotonic() - last[0] >= _EVERY:
            last[0] = time.monotonic()
            board.tell.remote(index, share, terms)

    try:
        with contextlib.redirect_stderr(log):
            other = parted([job["kind"], machine(gpu=job["gpu"])]) if job["kind"] else ""
            if other:
                message = f"This machine is of another kind than those that the job began on ({other})."
                raise ArtefactError(message)
            return {"result": job["function"](job["common"], index, tell)}
    except Exception as error:  # whatever it is, the one who asked must hear of it
        return {
            "error": type(error).__name__ if isinstance(error, DfqkitError) else "",
            "message": str(error),
            "trace": traceback.format_exc(),
            "log": "\n".join(log.getvalue().splitlines()[-_LOG_LINES:]),
            "where": f"{socket.gethostname()}, pid {os.getpid()}",
        }
    finally:
        logging.getLogger().removeHandler(handler)


class OnRay:
    """Parts as tasks of Ray.

    Args:
        address: ``local``, ``auto``, or that of a cluster (host:port, ray://host:port).
        workers: Parts at a time, at the most; None for as many as there are cores for.
    """

    def __init__(self, address: str, workers: int | None = None) -> None:
        self.address, self.workers = address, workers

    def run(self, job: Job, bar: Bar) -> Iterator[tuple[int, Any]]:
        """Yield index and result of every part as it is done."""
        import ray

        self._connect(job)
        board = ray.remote(_Board).options(num_cpus=0, max_restarts=-1).remote()
        pending, told, looked = dict[Any, int](), Told(job, bar), time.monotonic()
        try:
            for ref in _ended(ray, self._sent(job, board, pending), pending, self._room(job)):
                if ref is not None:
                    index = pending.pop(ref)
                    result = _result(ray, ref, job, index)
                    told(index, 1.0)
                    yield index, result
                if time.monotonic() - looked >= _EVERY:
                    looked = time.monotonic()
                    with contextlib.suppress(ray.exceptions.RayError):  # lost with its machine; Ray makes it again
                        for index, (share, terms) in ray.get(board.take.remote(), timeout=_EVERY).items():
                            told(index, share, **terms)
        finally:
            for ref in pending:
                ray.cancel(ref)
            ray.kill(board)

    def _room(self, job: Job) -> int:
        """Return how many parts are sent at once: more than run, so that no worker waits for the driver, yet few."""
        import ray

        return self.workers or max(64, round(4 * ray.cluster_resources().get("CPU", 1) / job.threads))

    def _sent(self, job: Job, board: Any, pending: dict[Any, int]) -> Iterator[None]:
        """Send one part after the other, each when the next one is asked for."""
        import ray

        needs: dict[str, Any] = {"num_cpus": job.threads, "num_gpus": job.gpus}
        if job.memory:
            needs["memory"] = job.memory
        shared = {name: getattr(job, name) for name in ("function", "common", "threads")}
        sent = ray.put(shared | {"kind": self._one_kind(job), "gpu": job.gpus > 0})
        task = ray.remote(_one).options(max_retries=_AGAIN, scheduling_strategy="SPREAD", **needs)
        refs = dict[int, Any]()
        for index in job.indices:
            ref = task.remote(sent, index, board, *([refs[job.after[index]]] if index in job.after else []))
            if index in job.after.values():
                refs[index] = ref
            pending[ref] = index
            yield

    def _connect(self, job: Job) -> None:
        import ray

        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # By default workers are niced by 15, and other work of the session leaves them little of a core.
            os.environ.setdefault("RAY_worker_niceness", "0")
            quiet |= {"include_dashboard": False, "object_store_memory": _STORE}
            quiet["num_cpus"] = None if self.workers is None else self.workers * job.threads
        with _handlers_kept():
            try:
                ray.init(address=self.address, **quiet)
            except Exception as error:  # Ray raises a bare one where its processes take too long to start
                message = (
                    f"No Ray cluster answers at '{self.address}': {error} Give the address of one (`ray start`), "
                    "use --cluster local, which starts one where the machine is not too busy, or leave --cluster out."
                )
                raise RuntimeUnavailableError(message) from error

    def _one_kind(self, job: Job) -> dict[str, str]:
        """Return what the machines are that can do a part, or refuse those that differ; of this one alone, nothing."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        able = [
            node
            for node in ray.nodes()
            if node["Alive"]
            and node["Resources"].get("CPU", 0) >= job.threads
            and node["Resources"].get("GPU", 0) >= job.gpus
        ]
        if not able:
            message = (
                f"No machine of the cluster has what a {job.name} needs ({job.threads} cores, {job.gpus:g} GPUs). Add "
                "one, or take fewer --threads."
            )
            raise RuntimeUnavailableError(message)
        if self.address == "local" and len(able) == 1:  # asking would take as long as a worker takes to import torch
            return {}
        task = ray.remote(machine)
        share = {"num_cpus": 0, "num_gpus": min(job.gpus, 0.001)}
        refs = [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), **share
            ).remote(gpu=job.gpus > 0)
            for node in able
        ]
        kinds: list[dict[str, str]] = ray.get(refs)
        other = parted(kinds)
        if other:
            message = (
                f"The machines of the cluster are of several kinds ({other}), on which the same {job.name} has other "
                f"last digits: {', '.join(node['NodeManagerHostname'] for node in able)}. Take machines of one kind."
            )
            raise ArtefactError(message)
        return kinds[0]


def _ended(ray: Any, sending: Iterator[None], pending: dict[Any, int], room: int) -> Iterator[Any]:
    """Yield what of ``pending`` has ended, and None after a while without; keep ``room`` of them under way."""
    while True:
        while len(pending) < room and next(sending, "none left") is None:
            pass
        if not pending:
            return
        done, _ = ray.wait(list(pending), num_returns=1, timeout=_EVERY)
        if done:
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        yield from done or [None]


def _result(ray: Any, ref: Any, job: Job, index: int) -> Any:
    """Return what a part left, or raise what became of it."""
    alone = f"Alone, it is done by: {job.alone(index)}"
    try:
        outcome = ray.get(ref)
    except ray.exceptions.RayTaskError as error:  # before the part could begin, such as a package that is not there
        message = f"({job.name} {index}) {alone}\n{error}"
        raise RuntimeError(message) from error
    except ray.exceptions.RayError as error:
        message = (
            f"Every worker that did {job.name} {index} was lost ({_AGAIN + 1} of them): {str(error).splitlines()[0]} "
            f"Give it more memory or other machines. {alone}"
        )
        raise RuntimeCrashedError(message) from error
    if "result" in outcome:
        return outcome["result"]
    log = f"\nIts log ends with:\n{outcome['log']}" if outcome["log"] else ""
    where = f"({job.name} {index}, on {outcome['where']})"
    if outcome["error"]:
        kind: type[DfqkitError] = getattr(errors, outcome["error"], DfqkitError)
        message = f"{outcome['message']} {where}{log}\n{alone}"
        raise kind(message)
    message = f"{where} {alone}{log}\n{outcome['trace']}"
    raise RuntimeError(message)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep what a signal does here, which Ray changes when it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Callable[..., Any] | int | None] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
