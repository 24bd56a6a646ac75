"""Universal: a checkpoint of ZeRO 1 to 3 for another number of ranks, through DeepSpeed's universal checkpoint.

pieces of N ranks -> a file per tensor and state -> loaded by M ranks -> what DeepSpeed leaves out -> deleted
"""

from __future__ import annotations

import contextlib
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.errors import CheckpointError
from engine.sharding.errand import run_errand
from engine.sharding.shards import Shard
from engine.world import World

Converter = Callable[[Namespace], None]
"""``main`` of deepspeed.checkpoint.ds_to_universal."""


@contextmanager
def universal_copy(
    saved: Path, world: World, convert: Converter, *, on_progress: Callable[[], None]
) -> Iterator[Path]:
    """A universal copy of the DeepSpeed folder `saved`, beside its checkpoint, deleted at the end; all ranks together.

    Rank 0 converts, which takes three times the optimizer state on the disk and, of a large one, hours. Its name is one
    that the checkpoint folder tidies away, should this run end here. `on_progress` as in `run_errand`.
    """
    aside = saved.parent.with_name(f".replaced-universal-{saved.parent.name}")
    work = partial(_converted, saved, aside / saved.name, convert)
    problem = run_errand(work, world, on_progress=on_progress)
    if problem is not None:
        raise CheckpointError(
            f"checkpoint {str(saved.parent)!r} was saved by another number of ranks than {world.size}, and converting "
            f"it failed ({problem}); make room on the disk if it is full, or resume with as many ranks as before"
        )
    yield aside / saved.name
    world.barrier()
    if world.is_main:
        shutil.rmtree(aside)


@contextmanager
def loading_universal(wrapped: Any) -> Iterator[None]:
    """DeepSpeed's engine takes a folder for a universal checkpoint within.

    NOTE: at stages 1 and 2 it fails on a rank whose flat piece of a group is nothing but padding, as with many ranks
    and a small group. Such groups are kept from it: they hold nothing.
    """
    zero = wrapped.optimizer
    lp_groups, groups = getattr(zero, "bit16_groups", []), zero.optimizer.param_groups
    held = [any(p._hp_mapping is not None for p in group) for group in lp_groups]
    wrapped._config.load_universal_checkpoint = True
    if not all(held):
        zero.bit16_groups = [group for group, holds in zip(lp_groups, held, strict=True) if holds]
        zero.optimizer.param_groups = [group for group, holds in zip(groups, held, strict=True) if holds]
    try:
        yield
    finally:
        wrapped._config.load_universal_checkpoint = False
        if not all(held):
            zero.bit16_groups, zero.optimizer.param_groups = lp_groups, groups


def repair_optimizer(optimizer: Optimizer, universal: Path, saved: Path) -> None:
    """Gives each group its own settings and each state its own step counter, on the device where it counts.

    NOTE: DeepSpeed 0.19.8 gives every group the settings of the first at stage 3 (its weight decay, for instance), and
    all states one counter, which then counts each of them.
    """
    groups = torch.load(universal / "zero" / "optimizer_state.pt", weights_only=False)["param_groups"]
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update((key, value) for key, value in settings.items() if key != "params")
    own = {key for state in _states(_load(_optim_files(saved)[0])).values() for key in state}
    on_device = bool(optimizer.defaults.get("fused"))
    for parameter, state in optimizer.state.items():
        for key in state.keys() - own:
            del state[key]
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone().to(parameter.device if on_device else "cpu")


@torch.no_grad()
def load_unoptimized(module: nn.Module, shards: Sequence[Shard], saved: Path) -> None:
    """Reads buffers and frozen parameters from what was converted: a universal checkpoint lacks them."""
    files = sorted(saved.glob("*_model_states.pt"), key=_rank)
    first = _load(files[0])
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name not in parameters:
            tensor.copy_(first["module"][name])
    frozen = [shard for shard in shards if shard.frozen and shard.shape.numel()]
    if not any(shard.partitioned for shard in frozen):
        for shard in frozen:
            shard.live.copy_(first["module"][shard.name])
        return
    pieces = [
        first["frozen_param_fragments"],
        *(_load(file)["frozen_param_fragments"] for file in files[1:]),
    ]
    for shard in frozen:
        name = next(name for name in shard.names if name in pieces[0])
        whole = torch.cat([piece[name].view(-1) for piece in pieces])
        shard.live_part().copy_(whole[shard.start : shard.start + shard.size])


def _converted(saved: Path, universal: Path, convert: Converter, said: TextIO) -> str | None:
    """Converts; returns what went wrong. NOTE: in this process, since a fork of one with threads and a GPU may hang."""
    shutil.rmtree(universal.parent, ignore_errors=True)
    arguments = Namespace(
        input_folder="",
        output_folder=str(universal),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        universal.mkdir(parents=True)
        arguments.input_folder = str(_completed(saved, universal.parent / "completed", said))
        # It prints its progress: a line for each rank's file that it read, and for each tensor that it put together.
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            convert(arguments)
    except (OSError, RuntimeError, AssertionError, KeyError) as error:
        shutil.rmtree(universal.parent, ignore_errors=True)
        return f"{type(error).__name__}: {error}"
    return None


def _completed(saved: Path, aside: Path, said: TextIO) -> Path:
    """What to convert: DeepSpeed knows the states of Adam alone, so Lion gets a copy with zeros for those it lacks."""
    for file in _optim_files(saved):
        said.write(f"{file.name}\n")
        state_dict = _load(file)
        for state in _states(state_dict).values():
            if "exp_avg" not in state:
                raise KeyError(f"DeepSpeed does not convert the optimizer states {', '.join(state)}")
            if "exp_avg_sq" in state:
                return saved
            state.update(exp_avg_sq=torch.zeros_like(state["exp_avg"]), step=torch.zeros(()))
        aside.mkdir(exist_ok=True)
        torch.save(state_dict, aside / file.name)
    for file in saved.glob("*_model_states.pt"):
        (aside / file.name).symlink_to(file.resolve())
    return aside


def _states(state_dict: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The states of the flat pieces in a file of optimizer states, by number."""
    ours = state_dict["optimizer_state_dict"]
    states: dict[int, dict[str, Any]] = ours.get("base_optimizer_state", ours.get("optimizer_state_dict"))[
        "state"
    ]
    return states


def _optim_files(saved: Path) -> list[Path]:
    return sorted(saved.glob("*_optim_states.pt"), key=_rank)


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return state


def _rank(path: Path) -> int:
    found = re.search(r"pp_rank_(\d+)", path.name)
    return int(found.group(1)) if found else 0
