"""The run with Ray, on this machine or on a cluster: readers are tasks, networks are actors, and the queue of each is bounded.

Cases are read on a network's node while it scores another. It gets the next one when the answer for the last has come: so it
is known which case a worker was scoring when it ended (memory, a crash in native code). This case loses an attempt; those that
were read for the same network go to others. A node that is lost costs no attempt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import InputError, printable
from ..imaging.native import captured_stderr
from .cases import CohortCase

logger = logging.getLogger("process")

ATTEMPTS = 2
LOST_NODES = 5
"""How many workers a case may end before it is listed even if nodes were lost with them."""
LOSS_KNOWN_SECONDS = 15.0
STARTS = 3
"""How many networks in a row may fail to start."""

THREADS = 4
"""CPUs of a network without a GPU; more make the network little faster, another network does."""
READER_CPUS = 0.25
"""Of the CPUs that a network without a GPU claims, the share for its reader: reading is next to nothing compared with it."""
NETWORK_MEMORY = 4 << 30
"""Bytes of memory for each network on CPUs with its reader; a scan of 512 x 512 x 630 voxels takes 2.6 GB."""
MOST_READERS = 4

CONNECTING_SECONDS = 10.0
ADJUST_SECONDS = 10.0
SAY_WAITING_SECONDS = 60.0

KEEP_READERS = ("RAY_idle_worker_killing_time_threshold_ms", "60000")
"""For a Ray that is started: by default a reader that has waited for a second ends, and the next case waits for a new one to
import."""

NEEDS_RAY = "the packages of requirements/cohort.lock, or --shard, which needs no Ray"


class Scorer(Protocol):
    """What a network's process holds. `identity` is sent to the driver once."""

    @property
    def identity(self) -> Any: ...

    def score_packed(self, case: CohortCase, packed: Any) -> Any: ...


@dataclass(frozen=True)
class Work:
    """What workers do; both functions are found by their names in modules that workers can import.

    Attributes:
        read: reads a case, in a task.
        make_scorer: loads a network, in an actor; its argument is the number of threads.
    """

    read: Callable[[CohortCase], Any]
    make_scorer: Callable[[int], Scorer]


@dataclass(frozen=True)
class Plan:
    """How many networks there are, and what each takes.

    Attributes:
        networks: how many.
        cpus, gpus: that each network claims.
        threads: that each computes with.
        readers: cases that are read for a network while it scores another.
        reader_cpus: that each network claims beside them, for its readers. They claim none: on a node that networks had filled,
            a reader would wait for ever.
    """

    networks: int
    cpus: float
    gpus: float
    threads: int
    readers: int
    reader_cpus: float

    @property
    def claimed_cpus(self) -> float:
        """That a network claims with its readers."""
        return self.cpus + self.reader_cpus

    @classmethod
    def of(
        cls,
        nodes: Sequence[Mapping[str, float]],
        *,
        use_gpus: bool = True,
        networks: int | None = None,
        per_gpu: int = 1,
        readers: int | None = None,
    ) -> Plan:
        """Plan for nodes, given by their resources as Ray has them (CPU, GPU, memory in bytes).

        Args:
            use_gpus: whether networks run on GPUs, if there are any; else there are as many as CPUs and memory bear.
            networks: at most so many.
            per_gpu: networks that share a GPU.
            readers: None: as many as there are CPUs for.
        """
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1]  # the head of a cluster may be there for the driver alone
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1] if use_gpus else []
        if with_gpu:
            count = sum(int(node["GPU"]) * per_gpu for node in with_gpu)
            share = min(node["CPU"] / (int(node["GPU"]) * per_gpu) for node in with_gpu)
            own = 1.0 if share >= 2 else share / 2
            plan = cls(count, own, 1 / per_gpu, max(int(share) // 2, 1), min(max(int(share - own), 1), MOST_READERS), own)
        else:
            sizes = [int(node["CPU"]) for node in nodes]
            rooms = [max(int(node.get("memory", 1 << 60) // NETWORK_MEMORY), 1) for node in nodes]
            threads = min([THREADS, *sizes])
            count = sum(min(size // threads, room) for size, room in zip(sizes, rooms, strict=True))
            plan = cls(count, threads - READER_CPUS, 0.0, threads, 1, READER_CPUS)
        return replace(plan, networks=min(plan.networks, networks or plan.networks), readers=readers or plan.readers)


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        value: what its scorer returned; None if no attempt came to an end.
        crashed: how its last attempt ended then.
    """

    case: CohortCase
    value: Any
    attempts: int
    crashed: str = ""


@dataclass(eq=False)
class _Job:
    """A case on its way. `read` is the result of its reader, `answer` that of its network, once it has begun."""

    case: CohortCase
    crashed_on: list[str] = field(default_factory=list)
    read: Any = None
    answer: Any = None

    def outcome(self, value: Any, attempts: int, crashed: str = "") -> Outcome:
        return Outcome(self.case, value, attempts, crashed)


@dataclass(eq=False)
class _Network:
    handle: Any
    node: str = ""
    scoring: _Job | None = None
    ahead: list[_Job] = field(default_factory=list)
    """Being read, or read."""

    @property
    def load(self) -> int:
        return len(self.ahead) + (self.scoring is not None)


@contextlib.contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """Join the Ray cluster at an address, or start a Ray in this process's name alone, which ends with it.

    Args:
        address: as `ray.init` takes it; None: start one.
        cpus: that a Ray which is started has.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports to Ray's makers, which nothing here shall send
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault(*KEEP_READERS)
    try:
        import ray
    except ImportError:
        raise InputError("cohort.py", "ray is not installed", NEEDS_RAY) from None
    if address is not None:
        _check_address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with captured_stderr():  # a warning where the machine has no way to the internet
            if address is None:
                ray.init("local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **options)
            else:
                ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"--address {address}" if address else "cohort.py"
        raise InputError(where, f"Ray cannot be reached or started ({error})", "a running cluster, or no --address") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """
    Raises:
        InputError: nobody listens there. Ray itself would try for minutes.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), CONNECTING_SECONDS).close()
        except OSError as error:
            found = f"nobody can be reached there ({error})"
            raise InputError(f"--address {address}", found, "host:port of a running Ray cluster") from error


class RayRun:
    """Scores cases on the Ray that this process is connected to."""

    def __init__(self, work: Work, plan: Callable[[Sequence[Mapping[str, float]]], Plan]) -> None:
        """
        Args:
            work: what workers do.
            plan: from the resources of the nodes that are alive.
        """
        import ray

        self._ray = ray
        self._plan_of = plan
        self._plan = plan(self._nodes())
        self._work = work
        self._read = ray.remote(_read)
        self._actor: Any = ray.remote(_Scoring)
        self._starting: dict[Any, _Network] = {}
        self._networks: list[_Network] = []
        self._again: deque[_Job] = deque()
        self._failed_starts = 0
        self._adjusted = 0.0
        self._said_waiting = time.monotonic()
        self.identity: Any = None

    @property
    def plan(self) -> Plan:
        """For the nodes that were alive when it was last made."""
        return self._plan

    def start(self) -> Any:
        """Start the networks and wait until the first is loaded; return the identity of its scorer.

        Raises:
            InputError: as the scorer that is made, or no network can be started.
        """
        while self.identity is None:
            self._adjust()
            self._wait([])
        return self.identity

    def score(self, cases: Iterator[CohortCase]) -> Iterator[Outcome]:
        """Score cases; they come back in the order in which they are finished.

        `cases` is asked for the next case when a network has room for it.
        """
        outcomes: list[Outcome] = []
        exhausted = False
        while True:
            self._adjust()
            while self._again or not exhausted:
                network = min(self._networks, key=lambda network: network.load, default=None)
                if network is None or network.load > self._plan.readers:
                    break
                job = self._again.popleft() if self._again else None
                if job is None:
                    case = next(cases, None)
                    if case is None:
                        exhausted = True
                        break
                    job = _Job(case)
                self._read_for(network, job)
            if exhausted and not self._again and not any(network.load for network in self._networks):
                return
            self._wait(outcomes)
            yield from outcomes
            outcomes.clear()

    def _read_for(self, network: _Network, job: _Job) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        near = NodeAffinitySchedulingStrategy(network.node, soft=True)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": near}
        job.read = self._read.options(**options).remote(self._work.read, job.case)
        network.ahead.append(job)

    def _begin_what_is_read(self) -> None:
        """Give each network that is idle a case that has been read for it."""
        for network in self._networks:
            if network.scoring is None and network.ahead:
                read, _ = self._ray.wait([job.read for job in network.ahead], timeout=0, fetch_local=False)
                job = next((job for job in network.ahead if job.read in read), None)
                if job is not None:
                    network.ahead.remove(job)
                    network.scoring = job
                    job.answer = network.handle.score.remote(job.case, job.read)

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _adjust(self) -> None:
        """Start networks that are missing, now and then."""
        now = time.monotonic()
        if now < self._adjusted + ADJUST_SECONDS and (self._networks or self._starting):
            return
        self._adjusted = now
        plan = self._plan_of(self._nodes())
        # As when the first node with a GPU has joined, or when a node was lost for which a network is waiting.
        is_other = (plan.cpus, plan.gpus) != (self._plan.cpus, self._plan.gpus)
        self._plan = plan
        while self._starting and (is_other or len(self._networks) + len(self._starting) > plan.networks):
            _, network = self._starting.popitem()
            self._ray.kill(network.handle)
        for _ in range(self._plan.networks - len(self._networks) - len(self._starting)):
            options = {"num_cpus": self._plan.claimed_cpus, "num_gpus": self._plan.gpus, "scheduling_strategy": "SPREAD"}
            handle = self._actor.options(**options).remote(self._work.make_scorer, self._plan.threads)
            self._starting[handle.load.remote()] = _Network(handle)

    def _wait(self, outcomes: list[Outcome]) -> None:
        """Wait until something is ready, a second at most, and take note of all that is."""
        answers = {network.scoring.answer: network for network in self._networks if network.scoring is not None}
        reads = [job.read for network in self._networks if network.scoring is None for job in network.ahead]
        refs = [*answers, *reads, *self._starting]
        ready, _ = self._ray.wait(refs, timeout=1.0, fetch_local=False) if refs else ([], [])
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in ready:
            if ref in self._starting:
                self._started(ref)
            elif ref in answers:
                self._answered(answers[ref], outcomes)
        self._begin_what_is_read()
        if not refs:
            time.sleep(0.1)
        if not self._networks and time.monotonic() > self._said_waiting + SAY_WAITING_SECONDS:
            self._said_waiting = time.monotonic()
            text = "waiting for a network: it is being loaded, or no node has %g CPUs and %g GPUs to spare"
            logger.info(text, self._plan.claimed_cpus, self._plan.gpus)

    def _started(self, ref: Any) -> None:
        network = self._starting.pop(ref)
        try:
            network.node, identity = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, InputError):
                raise cause from None
            self._failed_starts += 1
            self._adjusted = 0.0
            if self._failed_starts >= STARTS:
                raise InputError(
                    "cohort.py", f"no network can be started ({_line(error)})", "workers with enough memory"
                ) from None
            return
        self._failed_starts = 0
        self._networks.append(network)
        if self.identity is None:
            self.identity = identity

    def _answered(self, network: _Network, outcomes: list[Outcome]) -> None:
        """What came of the case that a network was scoring."""
        job = network.scoring
        assert job is not None, "it was waited for"
        network.scoring = None
        try:
            value = self._ray.get(job.answer)
        except self._ray.exceptions.RayError as error:  # the network has ended, or the case's reader had
            if isinstance(error, self._ray.exceptions.RayActorError):
                self._lose(network)
            self._failed(job, network, error, outcomes)
            return
        outcomes.append(job.outcome(value, self._crashes(job) + 1))

    def _lose(self, network: _Network) -> None:
        """A network has ended: what was read for it goes to others."""
        self._networks.remove(network)
        self._again.extend(network.ahead)
        self._adjusted = 0.0
        with contextlib.suppress(Exception):
            self._ray.kill(network.handle)

    def _failed(self, job: _Job, network: _Network, error: Exception, outcomes: list[Outcome]) -> None:
        """Try a case again whose worker has ended, unless it has ended two on nodes that go on."""
        job.crashed_on.append(network.node)
        if len(job.crashed_on) < LOST_NODES and (self._crashes(job) < ATTEMPTS or self._is_lost(network.node)):
            logger.info("%s: its worker ended (%s); it is tried again", printable(job.case.entity), _line(error))
            self._again.append(job)
        else:
            outcomes.append(job.outcome(None, self._crashes(job), _line(error)))

    def _crashes(self, job: _Job) -> int:
        """How many workers a case has ended, without those whose nodes were lost with them."""
        lost = {node["NodeID"] for node in self._ray.nodes() if not node["Alive"]} if job.crashed_on else set()
        return sum(node not in lost for node in job.crashed_on)

    def _is_lost(self, node: str) -> bool:
        """Whether a node is lost, which Ray knows some seconds later than that its workers are."""
        end = time.monotonic() + LOSS_KNOWN_SECONDS
        while time.monotonic() < end:
            if any(found["NodeID"] == node and not found["Alive"] for found in self._ray.nodes()):
                return True
            time.sleep(0.5)
        return False


def _read(read: Callable[[CohortCase], Any], case: CohortCase) -> Any:
    """The readers' task."""
    return read(case)


class _Scoring:
    """The actor: a network in a process of its own."""

    def __init__(self, make_scorer: Callable[[int], Scorer], threads: int) -> None:
        self._make_scorer = make_scorer
        self._threads = threads
        self._scorer: Scorer | None = None

    def load(self) -> tuple[str, Any]:
        import ray

        self._scorer = self._make_scorer(self._threads)
        return ray.get_runtime_context().get_node_id(), self._scorer.identity

    def score(self, case: CohortCase, packed: Any) -> Any:
        assert self._scorer is not None, "it was loaded"
        return self._scorer.score_packed(case, packed)


def _line(error: Exception) -> str:
    """What ended a worker, in one line: Ray's own explanations have many."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    known = next((line for line in lines if "exit type" in line.lower() or "out of memory" in line.lower()), "")
    return " ".join((known or (lines[0] if lines else type(error).__name__)).split())[:300]
