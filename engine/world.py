"""World: which rank this process is, out of how many, on which device; started by torchrun, SLURM or alone."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from configs.base import ConfigError

Value = TypeVar("Value")

_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ranks that train together; without a `control` group it is this process alone."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: Any = None
    """Process group over gloo for small agreements on the host, which never wait for the device."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what only one may write."""
        return self.rank == 0

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def max(self, number: int) -> int:
        """The largest of the ranks' numbers, on every rank."""
        if self.size == 1:
            return number
        shared = torch.tensor([number])
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.control)
        return int(shared.item())

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def gather_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every rank's rows in rank order, as many on each, on the device the tensor is on; without gradient."""
        if self.size == 1:
            return tensor
        rows = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(rows, tensor.contiguous())
        return torch.cat(rows)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place, on the device the tensor is on."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
"""This process and no other, on the CPU, for what is planned or looked at and not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the launcher says about this process, before anything is started."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    master_addr: str | None
    master_port: int | None


def init_world() -> World:
    """Joins the other ranks (gloo on CPU, nccl on GPU) and exports the five variables DeepSpeed reads."""
    place = read_place(os.environ)
    device = _device(place)
    if place.size > 1:
        addr, port = place.master_addr or _slurm_first_node(), place.master_port
        if addr is None or port is None:
            raise ConfigError(
                f"rank {place.rank} of {place.size} does not know where rank 0 is: "
                "set MASTER_ADDR and MASTER_PORT, or start with 'mirada', torchrun or srun"
            )
    else:
        addr, port = place.master_addr or "127.0.0.1", place.master_port or _free_port()
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.size),
        LOCAL_RANK=str(place.local_rank),
        MASTER_ADDR=addr,
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(_num_threads(place))
    _init_process_group(place, device)
    control = dist.group.WORLD if device.type == "cpu" else dist.new_group(backend="gloo", timeout=_TIMEOUT)
    return World(
        rank=place.rank, size=place.size, local_rank=place.local_rank, device=device, control=control
    )


def close_world() -> None:
    """Leaves the process group when all ranks do; after an error call nothing, and let the process end."""
    if dist.is_initialized():
        # Rank 0 holds the store: if it ends first, the others' groups abort while they are taken down.
        dist.barrier()
        dist.destroy_process_group()


def read_place(environ: Mapping[str, str]) -> Place:
    """Who this process is: by torchrun's variables, else by SLURM's, else alone."""
    port = int(environ["MASTER_PORT"]) if "MASTER_PORT" in environ else None
    addr = environ.get("MASTER_ADDR")
    if "RANK" in environ and "WORLD_SIZE" in environ:
        size = int(environ["WORLD_SIZE"])
        return Place(
            rank=int(environ["RANK"]),
            size=size,
            local_rank=int(environ.get("LOCAL_RANK", 0)),
            local_size=int(environ.get("LOCAL_WORLD_SIZE", size)),
            master_addr=addr,
            master_port=port,
        )
    # NOTE: not SLURM_NTASKS, which a batch script has too, outside of any srun.
    if "SLURM_PROCID" in environ and int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Place(
            rank=int(environ["SLURM_PROCID"]),
            size=int(environ["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environ.get("SLURM_LOCALID", 0)),
            local_size=_first_number(environ.get("SLURM_TASKS_PER_NODE", "1")),
            master_addr=addr,
            master_port=port or _slurm_port(environ),
        )
    return Place(rank=0, size=1, local_rank=0, local_size=1, master_addr=addr, master_port=port)


def _init_process_group(place: Place, device: torch.device) -> None:
    backend = "gloo" if device.type == "cpu" else "nccl"
    if place.size == 1:
        # A store in memory: one process needs no port, so nothing can be taken or blocked.
        dist.init_process_group(
            backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT
        )
    else:
        dist.init_process_group(backend, rank=place.rank, world_size=place.size, timeout=_TIMEOUT)


def _device(place: Place) -> torch.device:
    num_devices = torch.cuda.device_count()
    if num_devices == 0:
        return torch.device("cpu")
    # NOTE: SLURM with --gpus-per-task shows each rank one GPU, which is number 0 for all of them.
    index = place.local_rank if num_devices > 1 else 0
    shared = num_devices == 1 and place.local_rank > 0 and "SLURM_PROCID" not in os.environ
    if index >= num_devices or shared:
        raise ConfigError(
            f"local rank {place.local_rank} has no GPU of its own: {num_devices} visible for {place.local_size} "
            "ranks on this node; start fewer ranks, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on CPU"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _num_threads(place: Place) -> int:
    if "OMP_NUM_THREADS" in os.environ:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return max(1, len(os.sched_getaffinity(0)) // place.local_size)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_number(text: str) -> int:
    """Tasks on the first node from SLURM's ``4(x2),3``."""
    match = re.match(r"\d+", text)
    return int(match.group()) if match else 1


def _slurm_port(environ: Mapping[str, str]) -> int:
    """A port that differs between the steps that may share a node."""
    job, step = int(environ.get("SLURM_JOB_ID", 0)), int(environ.get("SLURM_STEP_ID", 0))
    return 20_000 + (job * 97 + step) % 12_000


def _slurm_first_node() -> str | None:
    """Address of the first node of this job: by what SLURM knows, since node names need not resolve."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        return None
    first = _scontrol("show", "hostnames", nodes).split()[0]
    match = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", first))
    return match.group(1) if match else first


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True).stdout
