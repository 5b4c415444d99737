"""The faults, the moments they strike at, and how a seed draws them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from dataclasses import dataclass
from typing import Protocol

from tests.chaos.command import Command
from tests.chaos.processes import raylets
from tests.pipeline.faulty_s3 import TRANSIENT

MOST_FAULTS = 3
DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGILL, signal.SIGBUS)
LEFT = ("index", "progress.json", "staging/part-00001-0000000000.aaaa.parquet", "staging/garbage")
LONG = 120.0


class Fault(Protocol):
    """`strike` says whether there was anything to strike; `codes` are the exit codes that it excuses."""

    @property
    def codes(self) -> frozenset[int]: ...

    def strike(self, command: Command) -> bool: ...


@dataclass(frozen=True, slots=True)
class KillDriver:
    """Waits for its death: nothing else can end a worker that is stopped after it."""

    codes = frozenset({-signal.SIGKILL})

    def strike(self, command: Command) -> bool:
        command.process.kill()
        command.process.wait()
        return True


@dataclass(frozen=True, slots=True)
class SignalDriver:
    """SIGINT or SIGTERM. Before the command listens, the signal itself ends it."""

    number: signal.Signals
    times: int

    @property
    def codes(self) -> frozenset[int]:
        return frozenset({1, -self.number})

    def strike(self, command: Command) -> bool:
        for _ in range(self.times):
            command.process.send_signal(self.number)
            command.until(lambda: False, 0.3)
        return True


@dataclass(frozen=True, slots=True)
class SignalWorker:
    number: signal.Signals
    place: float
    codes = frozenset[int]()

    def strike(self, command: Command) -> bool:
        victim = _victim(command, self.place)
        return victim is not None and _send(victim, self.number)


@dataclass(frozen=True, slots=True)
class PauseWorker:
    seconds: float
    place: float
    codes = frozenset[int]()

    def strike(self, command: Command) -> bool:
        victim = _victim(command, self.place)
        if victim is None or not _send(victim, signal.SIGSTOP):
            return False
        command.until(lambda: False, self.seconds)
        _send(victim, signal.SIGCONT)
        return True


@dataclass(frozen=True, slots=True)
class HangWorker:
    """Stopped for good: only its heartbeat tells."""

    place: float
    codes = frozenset[int]()

    def strike(self, command: Command) -> bool:
        victim = _victim(command, self.place)
        return victim is not None and _send(victim, signal.SIGSTOP)


@dataclass(frozen=True, slots=True)
class KillNode:
    place: float
    codes = frozenset[int]()

    def strike(self, command: Command) -> bool:
        return command.nodes is not None and command.nodes.kill(self.place)


@dataclass(frozen=True, slots=True)
class JoinNode:
    codes = frozenset[int]()

    def strike(self, command: Command) -> bool:
        if command.nodes is not None:
            command.nodes.join()
        return command.nodes is not None


@dataclass(frozen=True, slots=True)
class Litter:
    """A file as a driver or a worker that was killed may leave it, or garbage."""

    name: str
    codes = frozenset[int]()

    def strike(self, command: Command) -> bool:
        return command.place.litter(self.name, b"PAR1 no more than this")


@dataclass(frozen=True, slots=True)
class TroubleStore:
    """The object store fails every so many requests for a while, for everybody. Retries may or may not outlast it."""

    probability: float
    seconds: float
    codes = frozenset({1})

    def strike(self, command: Command) -> bool:
        server = command.place.server
        if server is None:
            return False
        server.inject(self.probability, TRANSIENT)
        command.until(lambda: False, self.seconds)
        server.calm()
        return True


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault at its moment: after so many committed parts and so many seconds."""

    fault: Fault
    committed: int
    seconds: float

    def apply(self, command: Command) -> bool:
        """Wait for the moment, then strike. False where the command had ended, or there was nothing to strike."""
        if self.committed and not command.until(lambda: len(command.place.names()) >= self.committed, LONG):
            return False
        command.until(lambda: False, self.seconds)
        return not command.ended and self.fault.strike(command)


def draw(seed: int, parts: int, local: bool, nodes: bool) -> list[Strike]:
    """One to three faults in the order of their moments."""
    chance = random.Random(seed)
    strikes = [_draw_strike(chance, parts, local, nodes) for _ in range(chance.randint(1, MOST_FAULTS))]
    return sorted(strikes, key=lambda strike: strike.committed)


def _draw_strike(chance: random.Random, parts: int, local: bool, nodes: bool) -> Strike:
    fault = _draw_fault(chance, local, nodes)
    if chance.random() < 0.25:
        return Strike(fault, 0, chance.uniform(0.0, 8.0))  # while Ray and the workers start, mostly
    return Strike(fault, chance.randint(1, parts - 1), chance.choice([0.0, 0.01, 0.05, 0.2]))


def _draw_fault(chance: random.Random, local: bool, nodes: bool) -> Fault:
    made: list[Fault] = [
        KillDriver(),
        SignalDriver(chance.choice([signal.SIGINT, signal.SIGTERM]), chance.choice([1, 1, 2])),
        SignalWorker(chance.choice(DEADLY), chance.random()),
        SignalWorker(chance.choice(DEADLY), chance.random()),
        PauseWorker(chance.choice([0.3, 1.0, 3.0]), chance.random()),
        HangWorker(chance.random()),
    ]
    if nodes:
        made += [KillNode(chance.random()), KillNode(chance.random()), JoinNode()]
    if local:
        made.append(Litter(chance.choice(LEFT)))
    else:
        made += [TroubleStore(chance.choice([0.1, 0.5, 1.0]), chance.choice([0.5, 3.0])) for _ in range(2)]
    return chance.choice(made)


def _victim(command: Command, place: float) -> int | None:
    """A worker whose node lives: of one that is about to notice that its is gone, a signal would tell nothing."""
    nodes = raylets()
    workers = sorted(each.pid for each in command.workers() if each.parent in nodes)
    return workers[int(place * len(workers))] if workers else None


def _send(pid: int, number: signal.Signals) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False
