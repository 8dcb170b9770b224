"""Call a function many times on a Dask cluster: workers on this machine, on others, or in SLURM jobs.

:func:`each` yields results as they arrive and survives dead workers. It knows nothing about benchmarks; :mod:`helpers.runner` hands it
shards. Dask is an optional part: this module imports it only when a cluster is used.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

_ADDRESSES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")
_YAML = (".yaml", ".yml")
# Calls that are handed over even if few workers, or none, have come yet.
_AT_LEAST = 128

WAYS = "local, an address (tcp://host:8786), a scheduler file (.json) or a SLURM file (.yaml)"


class RunError(Exception):
    """A run cannot go on as asked; the message says what to do."""


def end_with_parent() -> None:
    """Make this process end when the one that started it is gone, even by a kill that left it no time to say so."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check(scheduler: str, workers: int | None = None) -> None:
    """Find out before any work what is wrong with the way to the scheduler.

    RunError if Dask is missing, the scheduler is none of those of :func:`connect`, or the number of workers cannot be chosen.
    """
    needed = ["distributed", *(["dask_jobqueue"] if scheduler.endswith(_YAML) else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"--scheduler needs {' and '.join(missing)}: pip install -c requirements.lock -e .[scale]")
    if scheduler.startswith(_ADDRESSES) or scheduler.endswith(".json"):
        if workers is not None:
            raise RunError(f"the workers of {scheduler} are already running; --processes is for --scheduler local and for a SLURM file.")
    elif scheduler == "slurm":
        raise RunError("--scheduler slurm: name the file that describes the jobs, such as --scheduler examples/slurm-gpu.yaml")
    elif scheduler != "local" and not scheduler.endswith(_YAML):
        raise RunError(f"--scheduler {scheduler!r} is not known; it takes {WAYS}.")
    if scheduler.endswith((".json", *_YAML)) and not Path(scheduler).is_file():
        raise RunError(f"--scheduler {scheduler}: there is no such file.")


@contextmanager
def connect(scheduler: str, workers: int | None = None) -> Iterator[Any]:
    """Connect to a Dask cluster, or start one that ends with the context; yield its client.

    The scheduler is ``local`` (worker processes on this machine), the address or ``.json`` scheduler file of a cluster that runs already,
    or a ``.yaml`` file (SLURM jobs; its keys are the arguments of ``dask_jobqueue.SLURMCluster``, and ``jobs``, how many). ``workers`` is
    the number of workers (``local``) or jobs (SLURM); what the file says if None.
    """
    check(scheduler, workers)
    from distributed import Client

    with ExitStack() as stack:
        try:
            if scheduler == "local":
                target = stack.enter_context(_local(workers or 1))
            elif scheduler.endswith(_YAML):
                target = stack.enter_context(_slurm(Path(scheduler), workers))
            else:
                target = None
            if target is not None:
                client = Client(target)
            elif scheduler.endswith(".json"):
                client = Client(scheduler_file=scheduler)
            else:
                client = Client(scheduler)
            stack.enter_context(client)
        except (OSError, TimeoutError) as error:
            raise RunError(f"no connection to the scheduler ({scheduler}): {error}") from error
        yield client


def _local(workers: int):
    from distributed import LocalCluster

    # Nothing listens on other interfaces than the machine's own. The memory is not divided in advance: structures differ in size.
    return LocalCluster(
        n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs="CRITICAL"
    )


def import_slurm_cluster():
    """Import dask-jobqueue. That changes what Ctrl-C does in the whole program; undo it."""
    before = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster

    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)
    return SLURMCluster


def _slurm(path: Path, jobs: int | None):
    import yaml

    slurm_cluster = import_slurm_cluster()

    try:
        settings = dict(yaml.safe_load(path.read_text()))
        asked = int(settings.pop("jobs", 1))
        cluster = slurm_cluster(**settings)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise RunError(f"{path} does not describe SLURM jobs: {error}") from error
    # A job that ends (walltime, preemption) is replaced by a new one until the run is complete.
    cluster.adapt(minimum_jobs=jobs or asked, maximum_jobs=jobs or asked)
    return cluster


def each(
    function: Callable[..., object],
    arguments: Sequence[tuple],
    names: Sequence[str],
    *,
    scheduler: str,
    workers: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, object]]:
    """Call a function with each of many arguments; yield (position, result) as results arrive.

    A call whose worker dies is made again elsewhere. What workers died of again and again is set aside, and the rest is finished first. The
    function must be importable by the workers; calls are begun in the order of their arguments, and have names in messages. Scheduler and
    workers are as for :func:`connect`; ``tell`` is given lines for the user. RunError if calls killed their workers, the scheduler was
    lost, or there was none; besides what the function raised.
    """
    tell = tell or (lambda line: None)
    with connect(scheduler, workers) as client:
        tell(_dashboard(client))
        if not client.nthreads():
            tell("waiting for the first worker")
        suspects = []
        for position, result in _calls(client, function, arguments, range(len(arguments)), None):
            if isinstance(result, _KilledItsWorkers):
                suspects.append(position)
            else:
                yield position, result
        # Dask blames everything that was queued at a worker when it died. Alone on the cluster, the innocent pass.
        guilty = []
        for position, result in _calls(client, function, arguments, suspects, 1):
            if isinstance(result, _KilledItsWorkers):
                guilty.append(names[position])
            else:
                yield position, result
    if guilty:
        raise RunError(
            f"workers died again and again over {'; '.join(guilty)}. All else is finished. "
            "Look into the logs of the workers: most often the memory did not suffice."
        )


def _dashboard(client) -> str:
    """Return a line about the dashboard. Whether the scheduler has what it needs can only be guessed from here."""
    note = "" if importlib.util.find_spec("bokeh") else " (its pages need bokeh where the scheduler runs: pip install bokeh)"
    return f"dashboard: {client.dashboard_link}{note}"


class _KilledItsWorkers:
    """Stands for the result of a call that no worker survived."""


def _calls(client, function, arguments, positions: Iterable[int], at_once: int | None) -> Iterator[tuple[int, object]]:
    """Make calls, so many at once. By default twice as many as there are workers: none waits, and the scheduler holds few arguments."""
    import cloudpickle
    from distributed import KilledWorker, as_completed
    from distributed.client import ClosedClientError

    # A message that a worker cannot read makes it leave without a word, and the next worker after it. This travels by value, and bytes
    # can always be read; what is wrong with them is then an error like any other.
    unreadable = "the task cannot be read"

    def call(payload: bytes) -> object:
        import pickle
        import platform

        try:
            function, arguments = pickle.loads(payload)  # noqa: S301  (what the client packed)
        except Exception as error:  # noqa: BLE001  (imported code can fail in any way; it is told to the client)
            raise LookupError(unreadable, platform.node(), str(error)) from None
        return function(*arguments)

    rest = iter(positions)
    running: dict[object, int] = {}
    label = f"{function.__name__}-{uuid.uuid4().hex}"

    def more() -> list[object]:
        room = (at_once or max(2 * len(client.nthreads()), _AT_LEAST)) - len(running)
        # Keys with one label are one group to Dask. It then hands them out as workers get free, rather than all in advance.
        begun = {}
        for place in islice(rest, max(room, 0)):
            begun[client.submit(call, cloudpickle.dumps((function, arguments[place])), key=(label, place))] = place
        running.update(begun)
        return list(begun)

    lost = RunError("the scheduler was lost. Start it again, or use another.")
    try:
        done = as_completed(more())
    except OSError as error:
        raise lost from error
    for future in done:
        place = running.pop(future)
        try:
            result = future.result()
        except KilledWorker:
            result = _KilledItsWorkers()
        except Exception as error:
            if error.args[:1] == (unreadable,):
                raise RunError(
                    f"the worker on {error.args[1]} cannot read its task ({error.args[2]}). "
                    "Install this project, in the same version, in the environment of the workers."
                ) from None
            # What the function raised is the caller's; anything else is the connection.
            if future.status == "error":
                raise
            raise lost from error
        del future
        yield place, result
        try:
            done.update(more())
        except (OSError, RuntimeError, ClosedClientError) as error:
            raise lost from error
