"""Engine: our config -> DeepSpeed; one optimizer step at ZeRO 0 to 3, and its state. The only importer of deepspeed."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from configs.training import RunConfig
from engine.errors import CheckpointError
from engine.saving.writer import Writer
from engine.sharding.buffers import BufferSync
from engine.sharding.ema import Ema
from engine.sharding.handover import Handover
from engine.sharding.loss_scale import LossScale
from engine.sharding.optim import build_optimizer, set_learning_rate
from engine.sharding.shards import shards_of
from engine.sharding.skips import SkipCount
from engine.sharding.universal import (
    Converter,
    load_unoptimized,
    loading_universal,
    repair_optimizer,
    universal_copy,
)
from engine.sharding.zero_config import deepspeed_config, frozen_config
from engine.survival.preempt import Stopped
from engine.world import World
from models.apprentice import students_of
from models.carrier import main_network

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
    if config.train.activation_checkpointing:
        _checkpoint_activations(main_network(model), config.model.name)
    optimizer = build_optimizer(model, config.optim, muon=_import_muon)
    deepspeed.init_distributed(dist_backend=_backend(world), auto_mpi_discovery=False, verbose=False)
    wrapped, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    # Its scripts that read a checkpoint without Mirada would be written now and by no writer.
    wrapped._copy_recovery_script = lambda folder: None
    if config.train.compile:
        wrapped.compile()
    return Engine(wrapped, config=config, world=world)


def shard_frozen(model: nn.Module, world: World) -> None:
    """Spreads the weights of a network that is not trained over the ranks, in place, on the device, by ZeRO stage 3.

    A layer's are gathered while it computes: from now on every rank calls the network, and equally often. Weights go to
    the device one by one: it never holds all of them.
    """
    deepspeed, settings = _import_deepspeed(world), frozen_config()
    deepspeed.init_distributed(dist_backend=_backend(world), auto_mpi_discovery=False, verbose=False)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(world.device)
    deepspeed.initialize(model=model, config=settings, dist_init_required=False)


class Engine:
    """A model with its optimizer, distributed: forward, backward, step, and what a checkpoint needs of them."""

    def __init__(self, wrapped: Any, *, config: RunConfig, world: World) -> None:
        self.world = world
        self.micro_batch = int(wrapped.train_micro_batch_size_per_gpu())
        self._wrapped = wrapped
        self.stage = config.zero.stage
        self.on_progress: Callable[[], None] = lambda: None
        """Called now and then by what may take longer than a watchdog would wait."""
        self._clip_grad = config.optim.clip_grad
        self._buffers = BufferSync(wrapped.module, world)
        self._shards = shards_of(wrapped.module, world)
        self._ema = None if config.train.ema is None else Ema(self._shards, world, decay=config.train.ema)
        self._files = Handover()
        wrapped.checkpoint_engine = self._files
        self._skips = SkipCount(world.device)
        self._grad_norm: Any = 0.0
        self._loss_scale: LossScale | None = None
        if config.train.precision == "fp16":
            self._loss_scale = LossScale(power=config.train.loss_scale_power)
            self._take_over_scaling()

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
        if self.stage == 0 and self._loss_scale is not None:
            loss = loss * self._loss_scale.factor
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
            self._skips.count(not self._wrapped.was_step_applied())
            self._grad_norm = self._wrapped.get_global_grad_norm()
        if self._loss_scale is not None:
            self._loss_scale.update(
                overflowed=bool(self._skips.in_a_row)
            )  # NOTE: waits for the device at stage 0
            self._pass_on_scale()
        self._buffers.step()
        if self._ema is not None:
            self._ema.update(index)

    def health(self) -> Health:
        """Gradient norm and skipped steps. NOTE: waits for the device."""
        norm = self._grad_norm
        return Health(grad_norm=float("nan") if norm is None else float(norm), **self._skips.state_dict())

    @property
    def has_average(self) -> bool:
        """Whether what is evaluated and released is an average of weights, and not those of the last step."""
        return self._ema is not None

    @contextmanager
    def evaluation(self, *, raw: bool = False) -> Iterator[nn.Module]:
        """The model to evaluate: not training, with the averaged weights if there are any; all ranks together.

        With `raw` it has the weights of the last step in any case. Training goes on afterwards, also after Stopped,
        which all ranks raise. After any other error the weights are left as they are: no collective is issued any more.
        """
        self._wrapped.eval()
        own = None
        if self._ema is not None and not raw:
            own = self._ema.exchange(self._ema.average, around=self._partitioned)
        try:
            yield self.model
        except Stopped:
            self._end_evaluation(own)
            raise
        self._end_evaluation(own)

    @torch.no_grad()
    def release_weights(self) -> dict[str, Tensor]:
        """State dict of what is released (averaged weights if there are any), whole, on the CPU; all ranks together.

        In float32 whatever the training's precision. At stage 3 only rank 0 gets it, the others an empty dict.
        """
        parts = {} if self._ema is None else self._ema.parts
        state = {name: tensor.detach() for name, tensor in self.module.state_dict().items()}
        keep = self.stage < 3 or self.world.is_main
        for shard in self._shards:
            whole = shard.whole(parts.get(shard.name, shard.master()), self.world)
            copy = whole.to("cpu", copy=True) if keep else whole[:0]
            state.update(dict.fromkeys(shard.names, copy))
        return {name: tensor.cpu() for name, tensor in state.items()} if keep else {}

    def save(self, folder: Path, writer: Writer) -> None:
        """Hands copies of weights, optimizer shards and average to the writer, for files under `folder`.

        All ranks together. Training may go on when it returns.
        """
        self._files.writer = writer
        try:
            self._wrapped.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        finally:
            self._files.writer = None
        if self._ema is not None:
            self._ema.save(folder, writer)

    def load(self, folder: Path, *, world_size: int) -> None:
        """Reads what `save` gave a writer when there were `world_size` ranks; all ranks together."""
        if self.stage == 0 or world_size == self.world.size:
            self._load(folder, _TAG)
        else:
            converting = universal_copy(
                folder / _TAG, self.world, _import_converter(), on_progress=self.on_progress
            )
            with converting as universal:
                with loading_universal(self._wrapped):
                    self._load(universal.parent, universal.name)
                repair_optimizer(self._wrapped.optimizer.optimizer, universal, folder / _TAG)
                load_unoptimized(self.module, self._shards, folder / _TAG)
        self._buffers.refresh()
        if self._ema is not None:
            self._ema.load(folder)

    def state_dict(self) -> dict[str, Any]:
        """The few numbers that `save` does not write; equal on all ranks."""
        state: dict[str, Any] = {"skips": dict(self._skips.state_dict())}
        if self._loss_scale is not None:
            state["loss_scale"] = dict(self._loss_scale.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._skips.load_state_dict(state["skips"])
        if self._loss_scale is not None:
            self._loss_scale.load_state_dict(state["loss_scale"])
            self._pass_on_scale()

    def _load(self, folder: Path, tag: str) -> None:
        found, _ = self._wrapped.load_checkpoint(str(folder), tag=tag)
        if found is None:
            raise CheckpointError(f"DeepSpeed finds no checkpoint in {str(folder / tag)!r}")

    def _end_evaluation(self, own: list[Tensor] | None) -> None:
        if self._ema is not None and own is not None:
            self._ema.exchange(own, around=self._partitioned)
        self._wrapped.train()

    @contextmanager
    def _partitioned(self) -> Iterator[None]:
        """At stage 3 no parameter is whole within, so partitions may change; small ones are gathered anew after."""
        if self.stage == 3:
            self._wrapped.optimizer.checkpoint_event_prologue()
        yield
        if self.stage == 3:
            self._wrapped.optimizer.checkpoint_event_epilogue()

    def _guard_whole_gradients(self) -> None:
        """Clips, and makes AdamW skip on the device what is not finite: DeepSpeed does neither safely at stage 0."""
        norms = [self._clip(part) for part in students_of(self.module).values()]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        found = (~torch.isfinite(norm)).float()
        # Fused AdamW has the hook that GradScaler uses: with found_inf set to 1 the step leaves everything as it was.
        optimizer = self._wrapped.optimizer
        optimizer.grad_scale, optimizer.found_inf = None, found
        self._skips.count(found)
        self._grad_norm = norm

    def _clip(self, part: nn.Module) -> Tensor:
        """Takes the loss scale off the gradients of a part, clips them, and gives the norm that they had."""
        parameters = [p for p in part.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._loss_scale is not None:
            torch._foreach_mul_(gradients, 1 / self._loss_scale.factor)
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self._clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_grad, norm, foreach=True)
        return norm

    def _take_over_scaling(self) -> None:
        """Puts our loss scale in the place of DeepSpeed's scaler for autocast in fp16 (see LossScale)."""
        self._wrapped.torch_autocast_z0_gradscaler = None
        if self.stage > 0:
            self._wrapped.optimizer.torch_autocast_gradscaler = None
        self._pass_on_scale()

    def _pass_on_scale(self) -> None:
        if self.stage > 0 and self._loss_scale is not None:
            self._wrapped.optimizer.override_loss_scale(self._loss_scale.factor)


def _import_deepspeed(world: World) -> Any:
    """Imports DeepSpeed so that it compiles nothing, searches for no MPI and keeps its messages to itself."""
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    # DeepSpeed calls collectives by names that torch 2.14 deprecates; that is not this user's concern.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*deprecated", category=FutureWarning)
    with _hidden(
        "mlflow"
    ):  # its autotuner would import it: 1.7 s and 115 MB of every rank, for what nobody calls here
        import deepspeed

    # It takes every engine for one with autocast once there was one in this process, and scales the loss of all.
    deepspeed.runtime.torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    # Its shared-memory all-reduce for CPUs is built with ninja and g++ at the first start (50 s); gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())  # ours are tested
    logger.handlers.clear()
    logger.propagate = True
    return deepspeed


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Within, a package is as if it were not installed, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's own sign for a module that must not be found
    try:
        yield
    finally:
        del sys.modules[name]


def _checkpoint_activations(model: Any, name: str) -> None:
    """Asks the model, in timm's way, to compute activations again in the backward pass."""
    if not hasattr(model, "set_grad_checkpointing"):
        raise ConfigError(
            f"train.activation_checkpointing is on, but model.name {name!r} cannot do it (it has no "
            "set_grad_checkpointing, as timm's Transformers have); turn it off, or lower train.micro_batch"
        )
    model.set_grad_checkpointing(True)


def _import_converter() -> Converter:
    """DeepSpeed's tool that makes universal checkpoints."""
    from deepspeed.checkpoint import ds_to_universal

    convert: Converter = ds_to_universal.main
    return convert


def _import_muon() -> type[torch.optim.Optimizer]:
    """DeepSpeed's Muon, whose matrices ZeRO gathers before it orthogonalizes them."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    muon: type[torch.optim.Optimizer] = MuonWithAuxAdam
    return muon


def _backend(world: World) -> str:
    return "gloo" if world.device.type == "cpu" else "nccl"


def _trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
