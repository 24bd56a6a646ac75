"""Engine: our config -> DeepSpeed; one optimizer step at ZeRO 0 to 3. The only importer of deepspeed."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.training import RunConfig
from engine.buffers import BufferSync
from engine.ema import Ema
from engine.optim import build_optimizer, set_learning_rate
from engine.world import World
from engine.zero_config import deepspeed_config

_TAG = "deepspeed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the last steps went, read from the device."""

    grad_norm: float
    skipped: int
    """Steps of the whole run whose loss or gradients were not finite; they changed nothing."""
    skipped_in_a_row: int


def build_engine(model: nn.Module, config: RunConfig, world: World) -> Engine:
    """Puts the model on the device and gives it an optimizer, sharded as `config.zero` says."""
    settings = deepspeed_config(config, world, num_parameters=_trainable(model))
    deepspeed = _import_deepspeed(world)
    model = model.to(world.device)
    optimizer = build_optimizer(model, config.optim)
    deepspeed.init_distributed(dist_backend=_backend(world), auto_mpi_discovery=False, verbose=False)
    wrapped, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    return Engine(wrapped, config=config, world=world)


class Engine:
    """A model with its optimizer, distributed: forward, backward, step, and what a checkpoint needs of them."""

    def __init__(self, wrapped: Any, *, config: RunConfig, world: World) -> None:
        self.world = world
        self.micro_batch = int(wrapped.train_micro_batch_size_per_gpu())
        self._wrapped = wrapped
        self.stage = config.zero.stage
        self._clip_grad = config.optim.clip_grad
        self._buffers = BufferSync(wrapped.module, world)
        self._ema = None if config.train.ema is None else Ema(wrapped.module, decay=config.train.ema)
        self._none, self._one = torch.zeros((), device=world.device), torch.ones((), device=world.device)
        self._skipped = torch.zeros((), device=world.device)
        self._in_a_row = torch.zeros((), device=world.device)
        self._grad_norm: Any = 0.0

    @property
    def model(self) -> nn.Module:
        """What an objective calls: the module with autocast and gathering around it."""
        wrapped: nn.Module = self._wrapped
        return wrapped

    @property
    def module(self) -> nn.Module:
        """The network itself, for hooks and names."""
        module: nn.Module = self._wrapped.module
        return module

    def accumulate(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradients of one micro-batch; the last of a step is followed by `step`."""
        self._wrapped.backward(loss)
        if not last:
            self._wrapped.step()  # which only counts the micro-batch

    def step(self, index: int, *, learning_rate: float) -> None:
        """Optimizer step `index` (from 0); gradients that are not finite change nothing and are counted."""
        set_learning_rate(self._wrapped.optimizer.param_groups, learning_rate)
        if self.stage == 0:
            self._guard_whole_gradients()
        self._wrapped.step()
        if self.stage > 0:
            self._count_skip(self._none if self._wrapped.was_step_applied() else self._one)
            self._grad_norm = self._wrapped.get_global_grad_norm()
        self._buffers.step()
        if self._ema is not None:
            self._ema.update(index)

    def health(self) -> Health:
        """Gradient norm and skipped steps. NOTE: waits for the device."""
        norm = self._grad_norm
        return Health(
            grad_norm=float("nan") if norm is None else float(norm),
            skipped=int(self._skipped.item()),
            skipped_in_a_row=int(self._in_a_row.item()),
        )

    @contextmanager
    def evaluation(self) -> Iterator[nn.Module]:
        """The model to evaluate: not training, with the averaged weights if there are any; all ranks together."""
        self._wrapped.eval()
        try:
            if self._ema is None:
                yield self.model
            else:
                with self._ema.applied():
                    yield self.model
        finally:
            self._wrapped.train()

    def release_weights(self) -> dict[str, Tensor]:
        """State dict of what is released (averaged weights if there are any), whole, on the CPU; all ranks together.

        At stage 3 only rank 0 gets it, the others an empty dict.
        """
        if self.stage == 3:
            gathered = self._wrapped._zero3_consolidated_16bit_state_dict()
            return {} if gathered is None else {name: tensor.clone() for name, tensor in gathered.items()}
        average = {} if self._ema is None else self._ema.state_dict()
        return {
            name: average.get(name, tensor).detach().cpu().clone()
            for name, tensor in self.module.state_dict().items()
        }

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer shards under `folder`; all ranks together."""
        self._wrapped.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, at the same world size unless the stage is 0; all ranks together."""
        self._wrapped.load_checkpoint(str(folder), tag=_TAG)
        self._buffers.refresh()

    def state_dict(self) -> dict[str, Any]:
        """What `save` does not write: the average and the counts, equal on all ranks."""
        state: dict[str, Any] = {
            "skipped": int(self._skipped.item()),
            "skipped_in_a_row": int(self._in_a_row.item()),
        }
        if self._ema is not None:
            state["ema"] = self._ema.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._skipped.fill_(state["skipped"])
        self._in_a_row.fill_(state["skipped_in_a_row"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])

    def _guard_whole_gradients(self) -> None:
        """Clips, and makes AdamW skip on the device what is not finite: DeepSpeed does neither safely at stage 0."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        if self._clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_grad, norm, foreach=True)
        found = (~torch.isfinite(norm)).float()
        # Fused AdamW has the hook that GradScaler uses: with found_inf set to 1 the step leaves everything as it was.
        optimizer = self._wrapped.optimizer
        optimizer.grad_scale, optimizer.found_inf = None, found
        self._count_skip(found)
        self._grad_norm = norm

    def _count_skip(self, found: Tensor) -> None:
        self._skipped += found
        self._in_a_row.add_(found).mul_(found)


def _import_deepspeed(world: World) -> Any:
    """Imports DeepSpeed so that it compiles nothing, searches for no MPI and keeps its messages to itself."""
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    # DeepSpeed calls collectives by names that torch 2.14 deprecates; that is not this user's concern.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*deprecated", category=FutureWarning)
    import deepspeed

    # Its shared-memory all-reduce for CPUs is built with ninja and g++ at the first start (50 s); gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.handlers.clear()
    logger.propagate = True
    return deepspeed


def _backend(world: World) -> str:
    return "gloo" if world.device.type == "cpu" else "nccl"


def _trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
