"""All ranks are told the same address and port, and what the user has set wins."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from configs.base import ConfigError
from launch.submission import rendezvous
from launch.submission.rendezvous import Meeting, free_port, meet


def test_every_rank_hears_what_rank_0_found(tmp_path: Path) -> None:
    heard: dict[int, Meeting] = {}

    def join(rank: int) -> None:
        environ = {"MIRADA_FIRST_NODE": "10.0.0.1"} if rank == 0 else {}
        heard[rank] = meet(tmp_path / "17.0", environ, rank=rank, start="a")

    ranks = [threading.Thread(target=join, args=(rank,)) for rank in (3, 2, 1, 0)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    assert len(set(heard.values())) == 1 and len(heard) == 4
    assert heard[3].address == "10.0.0.1" and 20_000 <= heard[3].port <= 32_767


def test_what_a_former_start_left_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet(tmp_path, {}, rank=0, start="old")
    monkeypatch.setattr(rendezvous, "_TIMEOUT_S", 0.2)
    with pytest.raises(ConfigError, match=r"rank 0 did not say .* on a shared file system"):
        meet(tmp_path, {}, rank=1, start="new")
    now = meet(tmp_path, {}, rank=0, start="new")
    assert meet(tmp_path, {}, rank=1, start="new") == now


def test_the_users_own_settings_win_each_for_itself(tmp_path: Path) -> None:
    both = {"MASTER_ADDR": "head", "MASTER_PORT": "1234", "MIRADA_FIRST_NODE": "10.0.0.1"}
    for rank in (0, 5):
        assert meet(tmp_path / "none", both, rank=rank, start="a") == Meeting(address="head", port=1234)
    assert not (tmp_path / "none").exists()
    port_only = meet(
        tmp_path / "b", {"MASTER_PORT": "1234", "MIRADA_FIRST_NODE": "10.0.0.1"}, rank=0, start="a"
    )
    assert port_only == Meeting(address="10.0.0.1", port=1234)
    assert meet(tmp_path / "c", {"MASTER_ADDR": "head"}, rank=0, start="a").address == "head"
    assert json.loads((tmp_path / "c" / "rendezvous.json").read_text())["address"] == "head"


def test_a_port_that_somebody_listens_on_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken, socket.socket() as other:
        taken.bind(("", 0))
        taken.listen()
        first = taken.getsockname()[1]
        other.bind(("", 0))
        free = other.getsockname()[1]
        other.close()
        monkeypatch.setattr(rendezvous, "_LOWEST_PORT", min(first, free))
        monkeypatch.setattr(rendezvous, "_HIGHEST_PORT", max(first, free))
        assert all(free_port() != first for _ in range(20))
        monkeypatch.setattr(rendezvous, "_LOWEST_PORT", first)
        monkeypatch.setattr(rendezvous, "_HIGHEST_PORT", first)
        with pytest.raises(ConfigError, match=f"no port from {first} to {first} is free .* MASTER_PORT"):
            free_port()


def test_ports_lie_below_those_the_system_hands_out() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert free_port() < lowest
