"""Lifeline: within seconds every rank knows that another died, failed or hangs, and ends; whatever the back end does.

    rank 0  <-- one TCP connection each -->  ranks 1 ... N-1        (the ranks' own words are lines of JSON)

Nothing is sent while all is well. The kernel closes the connections of a process that died, and TCP keepalive finds a
machine that went silent: no step pays for it, and a process that is merely busy is never taken for dead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, NoReturn

from configs.base import ConfigError
from engine.errors import LostRankError
from engine.world import World

log = logging.getLogger(__name__)

EXIT_LOST = 69
"""Exit code when another rank died, failed or hangs (EX_UNAVAILABLE): run the same command again."""

_JOIN_S = 60.0
_SILENCE_S, _PROBE_S, _NUM_PROBES = 5, 3, 5
"""A machine that answers nothing is given up after 5 + 5 x 3 = 20 s; the sum with _GRACE_S stays below 30 s."""
_GRACE_S = 5.0
"""So long the main thread may take to end by itself, with its traceback, once a rank is known to be lost."""
_EXPLANATION_S = 3.0
"""So long an error waits for the news that another rank was its cause; the news takes milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A process of the run, as people find it."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The first rank that was lost, and why."""

    member: Member
    why: str
    hangs: bool = False

    def __str__(self) -> str:
        return f"{self.member} {self.why}"


class Lifeline:
    """A context manager around all that the ranks do together; entered and left by all of them.

    Left by an error it tells the other ranks. Where another rank's end was the cause, it ends this process at once,
    with EXIT_LOST: after that nothing that waits for a rank may be called, and libraries do so when they are torn down.
    """

    def __init__(self, world: World, *, grace_s: float = _GRACE_S) -> None:
        self.me = Member(rank=world.rank, host=socket.gethostname(), pid=os.getpid())
        self.on_news: Callable[[Lost], None] = lambda lost: None
        """Called at once when another rank is lost, from a thread of its own."""
        self.before_end: Callable[[str], None] = lambda reason: None
        """Called with the reason before that thread ends this process."""
        self._grace_s = grace_s
        self._peers = _join(world, self.me)
        self._lost: Lost | None = None
        self._known = threading.Event()
        self._has_waited = False
        self._leaving = False

    def __enter__(self) -> Lifeline:
        if self._peers:
            threading.Thread(target=self._watch, name="lifeline", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._leaving = True
            self._tell({"leaving": True})
            self._say_no_more()
            return
        if isinstance(self.explain(error), LostRankError):
            log.info("what it did to this rank", exc_info=error)
            self._end()
        self.announce(f"failed: {_in_short(error)}")
        self._leaving = True

    def explain(self, error: BaseException) -> BaseException:
        """The error of a lost rank if it caused this one (gloo says "connection closed"), else the error itself."""
        if isinstance(error, LostRankError | ConfigError | KeyboardInterrupt) or not self._peers:
            return error
        self._known.wait(0 if self._has_waited else _EXPLANATION_S)
        self._has_waited = True
        if self._lost is None or self._lost.member == self.me:
            return error
        return LostRankError(str(self._lost))

    def announce(self, why: str, *, hangs: bool = False) -> None:
        """Tells all other ranks that this one is lost to them; they end."""
        lost = Lost(member=self.me, why=why, hangs=hangs)
        self._lost = self._lost or lost
        self._known.set()
        self._tell(asdict(lost))

    def _tell(self, message: dict[str, Any], *, but: int | None = None) -> None:
        line = (json.dumps(message) + "\n").encode()
        for rank, peer in self._peers.items():
            if rank != but:
                with contextlib.suppress(OSError):  # it has ended too
                    peer.connection.sendall(line)

    def _say_no_more(self) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers.values():
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = key.data
                    lost = peer.listen()
                    if lost is not None:
                        selector.unregister(peer.connection)
                    if isinstance(lost, Lost) and self._lost is None and not self._leaving:
                        self._give_up(lost, heard_from=peer.member.rank)
        for peer in self._peers.values():
            peer.connection.close()

    def _give_up(self, lost: Lost, *, heard_from: int) -> None:
        self._lost = lost
        self._tell(asdict(lost), but=heard_from)
        self._known.set()
        deadline = time.monotonic() + self._grace_s
        self.on_news(lost)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if self._leaving:  # the main thread has an error of its own, and ends with it
                return
        self.before_end(str(lost))
        self._end()

    def _end(self) -> NoReturn:
        log.error(
            "%s; this rank ends, run the same command again to go on from the last checkpoint", self._lost
        )
        end_process(EXIT_LOST)


def end_process(code: int) -> NoReturn:
    """Ends this process from whatever thread, without taking anything down that could wait for another rank."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class _Peer:
    """The other end of a connection."""

    def __init__(self, connection: socket.socket, member: Member) -> None:
        self.connection = connection
        self.member = member
        self._heard = b""
        self._has_left = False

    def listen(self) -> Lost | Literal["closed"] | None:
        """What arrived: a loss (of this peer or of one it knows of), the end of a connection, or nothing yet."""
        why = "is gone: its connection closed (killed? its log and the system's tell)"
        try:
            received = self.connection.recv(1 << 16)
        except OSError as error:
            received, why = b"", f"is gone: {error.strerror or error}"
        *lines, self._heard = (self._heard + received).split(b"\n")
        for message in map(json.loads, lines):
            if "leaving" in message:
                self._has_left = True
            else:
                return Lost(**{**message, "member": Member(**message["member"])})
        if received:
            return None
        return "closed" if self._has_left else Lost(member=self.member, why=why)


def _join(world: World, me: Member) -> dict[int, _Peer]:
    """Connects every rank with rank 0, at the address where it was found before; all ranks together."""
    if world.size == 1:
        return {}
    listener = _listen() if world.is_main else None
    port = 0 if listener is None else listener.getsockname()[1]
    # The word keeps strangers out: whoever can reach the port could end the run.
    hub, port, word = world.broadcast((me, port, secrets.token_hex()))
    if listener is not None:
        with listener:
            peers = dict(_accepted(listener, word, world.size - 1))
    else:
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=_JOIN_S)
        connection.sendall((json.dumps({"word": word, **asdict(me)}) + "\n").encode())
        peers = {0: _Peer(connection, hub)}
    for peer in peers.values():
        _keep_alive(peer.connection)
    world.barrier()
    return peers


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _accepted(listener: socket.socket, word: str, num_ranks: int) -> Iterator[tuple[int, _Peer]]:
    deadline = time.monotonic() + _JOIN_S
    joined = 0
    while joined < num_ranks:
        listener.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            raise ConfigError(
                f"{num_ranks - joined} of {num_ranks} ranks could not connect to port "
                f"{listener.getsockname()[1]} of host {socket.gethostname()!r} within {_JOIN_S:.0f} s, though all "
                "reached MASTER_PORT: let the nodes of a job connect to one another on any port"
            ) from None
        member = _introduced(connection, word)
        if member is None:
            connection.close()
        else:
            joined += 1
            yield member.rank, _Peer(connection, member)


def _introduced(connection: socket.socket, word: str) -> Member | None:
    """Who it is, or None for a stranger."""
    connection.settimeout(_JOIN_S)
    try:
        with connection.makefile("rb", buffering=0) as lines:
            said = json.loads(lines.readline(1024))
        return Member(**said) if said.pop("word") == word else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _NUM_PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _in_short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 500 else text[:500] + " ..."
