"""How the ranks reach one another: bandwidth of an all-reduce, free ports, and whether clocks agree."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from configs.finding import Finding
from engine.doctor.staff import Staff

_ELEMENTS = {"cuda": 64 << 20, "cpu": 2 << 20}  # float32: 256 MB, as the gradients of 64M parameters; 8 MB
_REPEATS = 5
_SLOW_GB_PER_S = 2.0
"""Between nodes with GPUs: a 10 Gbit/s network carries 1.2 GB/s, the slowest InfiniBand in use 6."""
_FAR_OFF_S = 1.0
_CONNECT_S = 10.0
_PINGS = 8


def check_bandwidth(staff: Staff) -> Finding:
    """All-reduce over the first ranks of all nodes, and over the ranks of the first node; slow links are named."""
    if staff.world.size == 1:
        return Finding(check="all-reduce", said="one rank: nothing to exchange")
    first = [rank for rank, node in enumerate(staff.nodes) if node == staff.nodes[0]]
    within, between = _group(first), _group(list(staff.leaders))
    parts, slow = [], False
    if len(first) > 1:
        parts.append(f"{_shared(staff, within, first):.2f} GB/s within a node")
    if len(staff.leaders) > 1:
        rate = _shared(staff, between, list(staff.leaders))
        slow = staff.world.device.type == "cuda" and rate < _SLOW_GB_PER_S
        parts.append(f"{rate:.2f} GB/s between {len(staff.leaders)} nodes")
        parts += _slow_links(staff)
    said = f"{', '.join(parts)} ({'nccl' if staff.world.device.type == 'cuda' else 'gloo'}, bus bandwidth)"
    if slow:
        return Finding(
            check="all-reduce",
            level="fail",
            said=said,
            advice="NCCL may have taken a slow interface: look at NCCL_DEBUG=INFO, and set NCCL_SOCKET_IFNAME or "
            "NCCL_IB_HCA in the cluster file's environment",
        )
    if any("slow link" in part for part in parts):
        return Finding(
            check="all-reduce", level="note", said=said, advice="exclude that node, or ask for its cable"
        )
    return Finding(check="all-reduce", said=said)


def check_ports(staff: Staff) -> Finding:
    """Every rank reaches rank 0 on a port of rank 0's choice, as training does for its lifeline."""
    if staff.world.size == 1:
        return Finding(check="free ports", said="one rank: none needed")
    with contextlib.ExitStack() as stack:
        address = None
        if staff.world.is_main:
            listener = stack.enter_context(socket.create_server(("", 0), backlog=staff.world.size))
            address = (os.environ["MASTER_ADDR"], listener.getsockname()[1])
        host, port = staff.world.broadcast(address) or ("", 0)
        reached = staff.world.gather(_reaches(host, port))
    unreached = list(dict.fromkeys(n for n, ok in zip(staff.nodes, reached, strict=True) if not ok))
    if unreached:
        return Finding(
            check="free ports",
            level="fail",
            said=f"{', '.join(unreached)} cannot connect to {host} port {port}",
            advice="open the ports above 1023 between compute nodes, or set MASTER_ADDR to an address on their network",
        )
    return Finding(
        check="free ports", said=f"every rank reaches rank 0 at {host}, also on a port of its choice"
    )


def check_clocks(staff: Staff) -> Finding:
    """The nodes' clocks agree within a second: logs, points and file times of all nodes are put in one order."""
    offsets = _clock_offsets(staff)
    if len(offsets) < 2:
        return Finding(check="clocks", said="one node")
    worst = max(offsets, key=lambda node: abs(offsets[node]))
    said = f"{worst} is {offsets[worst] * 1e3:+.1f} ms from {staff.nodes[0]}, the others less"
    if abs(offsets[worst]) > _FAR_OFF_S:
        return Finding(
            check="clocks",
            level="fail",
            said=said,
            advice=f"have the time service of {worst} repaired (chronyc tracking)",
        )
    return Finding(check="clocks", said=said)


def _group(ranks: list[int]) -> Any:
    """NOTE: every rank makes every group, also those it is not in."""
    return dist.new_group(ranks)


def _shared(staff: Staff, group: Any, members: list[int]) -> float:
    """Bus bandwidth in 1e9 bytes/s of an all-reduce over the members, on every rank; a wrong sum is a NodeError."""
    rate, error = 0.0, ""
    if staff.world.rank in members:
        values = torch.empty(_ELEMENTS[staff.world.device.type], device=staff.world.device)
        seconds = median(_timed_all_reduce(values, group) for _ in range(_REPEATS + 1))
        if not bool((values == len(members)).all()):
            error = f"the all-reduce over ranks {members} gives a wrong sum"
        num_bytes = values.numel() * values.element_size()
        rate = 2 * (len(members) - 1) / len(members) * num_bytes / seconds / 1e9
    answers = staff.world.gather((rate, error))
    staff.raise_first([text for _, text in answers])
    return float(answers[members[0]][0])


def _timed_all_reduce(values: torch.Tensor, group: Any) -> float:
    values.fill_(1.0)
    dist.barrier(group=group)
    start = time.perf_counter()
    dist.all_reduce(values, group=group)
    if values.is_cuda:
        torch.cuda.synchronize(values.device)
    return time.perf_counter() - start


def _slow_links(staff: Staff) -> list[str]:
    """Neighbouring nodes exchange data in pairs; a pair at less than half of the median speed is named."""
    leaders = staff.leaders
    if len(leaders) < 3:
        return []
    pairs = list(pairwise(leaders))
    mine = [_exchange(staff, pair) for pair in pairs]
    rates = [max(column) for column in zip(*staff.world.gather(mine), strict=True)]
    typical = median(rates)
    return [
        f"slow link {staff.nodes[one]} - {staff.nodes[other]} at {rate:.2f} GB/s (median {typical:.2f})"
        for (one, other), rate in zip(pairs, rates, strict=True)
        if rate < typical / 2
    ]


def _exchange(staff: Staff, pair: tuple[int, int]) -> float:
    """1e9 bytes/s from one to the other and back; 0 for ranks that only watch."""
    if staff.world.rank not in pair:
        return 0.0
    values = torch.ones(_ELEMENTS[staff.world.device.type], device=staff.world.device)
    best_s = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        if staff.world.rank == pair[0]:
            dist.send(values, pair[1])
            dist.recv(values, pair[1])
        else:
            dist.recv(values, pair[0])
            dist.send(values, pair[0])
        if values.is_cuda:
            torch.cuda.synchronize(values.device)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * values.numel() * values.element_size() / best_s / 1e9


def _reaches(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _clock_offsets(staff: Staff) -> dict[str, float]:
    """Seconds that each node's clock is ahead of the first one's: the answer of the quickest of a few questions."""
    offsets = {staff.nodes[0]: 0.0}
    group = staff.world.control
    for leader in staff.leaders[1:]:
        answers = []
        for _ in range(_PINGS):
            clock = torch.zeros(1, dtype=torch.float64)
            if staff.world.is_main:
                asked = time.time()
                dist.send(clock, leader, group=group)
                dist.recv(clock, leader, group=group)
                answered = time.time()
                answers.append((answered - asked, float(clock) - (asked + answered) / 2))
            elif staff.world.rank == leader:
                dist.recv(clock, 0, group=group)
                dist.send(torch.full((1,), time.time(), dtype=torch.float64), 0, group=group)
        offsets[staff.nodes[leader]] = min(answers)[1] if answers else 0.0
    return staff.world.broadcast(offsets)
