"""Session: what every training program opens before its model and closes after its last step.

ranks -> data -> [model -> engine -> objective: the program's own] -> run folder -> event log -> Trainer -> release
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from configs.base import ConfigError, Duration
from configs.training import ModelConfig, ProbeConfig, RunConfig
from data_pipeline.inspection.sample_names import SampleNames
from data_pipeline.loader import ShardLoader
from data_pipeline.sidecar import Sidecar
from data_pipeline.whole_file import write_whole
from engine.command import Command
from engine.datasets import open_datasets
from engine.events import EventLog
from engine.journal import Journal
from engine.kept_tokens import TokenLog
from engine.meters import Meter
from engine.objective import Objective
from engine.penalized import Penalized
from engine.planning.accelerator import peak_flops
from engine.progress import Progress
from engine.results.evaluate import Beside
from engine.results.evaluation import Evaluation
from engine.results.release import Origin, write_release
from engine.results.zero_shot import NameClasses
from engine.run_event import describe_run
from engine.run_folder import RunFolder, open_run_folder, start_logging
from engine.saving.checkpoint import CheckpointStore
from engine.sharding.zero import Engine
from engine.sharding.zero_config import BatchShape
from engine.survival.bad_list import BadList
from engine.survival.lifeline import Lifeline
from engine.survival.preempt import Stopped, StopSignal
from engine.survival.rollback import Rollback
from engine.survival.safeguards import Safeguards
from engine.survival.watchdog import Watchdog
from engine.timetable import Timetable
from engine.tracking.command import start_follower
from engine.tracking.system_metrics import SystemMetrics, count_samples
from engine.tracking.tensorboard import check_tensorboard
from engine.trainer import Outcome, Trainer, seed_ranks
from engine.tuning import KERNELS_FILE, tune_kernels
from engine.world import World, close_world, init_world
from models.carrier import companion_of, main_network, released_parts
from models.complexity import count_own_flops, train_flops_per_image
from models.dry_step import Forward, call_model
from models.dynamic import dynamic_blocks
from models.kernel_report import layers_by_kernel, report_kernels
from models.key_report import KeyReport
from models.lora import merge_lora

log = logging.getLogger(__name__)


class Session:
    """The ranks and data of one run; from `trainer` on also its folder, which a mistake made before leaves alone."""

    def __init__(
        self,
        command: Command,
        config: RunConfig,
        world: World,
        stop: StopSignal,
        lifeline: Lifeline,
        *,
        needs_labels: bool,
        needs_captions: bool,
    ) -> None:
        self.config = config
        self.world = world
        self.stop = stop
        self._lifeline = lifeline
        self.index, self._val_index = open_datasets(
            config, needs_labels=needs_labels, needs_captions=needs_captions
        )
        self._needs_captions = needs_captions
        if config.tracking.tensorboard:
            check_tensorboard()
        self._command = command
        self._loader = ShardLoader(
            self.index,
            config.data,
            global_batch=config.train.global_batch,
            seed=config.train.seed,
            duration=config.train.duration,
            needs_captions=needs_captions,
            rank=world.rank,
            world_size=world.size,
        )
        self._timetable = Timetable.of(config, steps_per_epoch=self._loader.batches_per_epoch)
        self._evaluation = (
            None if self._val_index is None else Evaluation(self._val_index, config, world=world, stop=stop)
        )
        self._folder: RunFolder | None = None
        self._events = EventLog(None)
        self._run_id = ""
        self._kernels: dict[str, str] = {}
        self._tuned: dict[str, Any] = {}
        self._flops_per_image: float | None = None
        self._peak_flops: float | None = None
        self._system_metrics: SystemMetrics | None = None
        self._progress = Progress(command.out.name, quiet=not world.is_main)
        self._started_from: KeyReport | None = None

    def started_from(self, report: KeyReport) -> None:
        """Remembers what became of a checkpoint's weights: the run folder keeps all of it, the log the gist."""
        self._started_from = report
        self._progress.note(report.summary())

    def note(self, text: str) -> None:
        """Shows a line, once for all ranks."""
        self._progress.note(text)

    def examine(
        self, model: nn.Module, *, forward: Forward = call_model, frozen: Sequence[nn.Module] = ()
    ) -> None:
        """Finds out the kernels of its attention, and its operations, for "perf/mfu" where the device's peak is known.

        Before the model is sharded. Kernels that are to be tuned are measured; one that is wished for and cannot be had
        is a ConfigError.
        """
        data, device, precision = self.config.data, self.world.device, self.config.train.precision
        shape = (data.channels, data.image_size, data.image_size)
        self._tuned = tune_kernels(
            model,
            self.config,
            self.world,
            forward=forward,
            known=None if self._command.fresh else self._command.out / KERNELS_FILE,
        )
        self._kernels = report_kernels(
            model,
            shape,
            device=device,
            precision=precision,
            batch=BatchShape.of(self.config, self.world).micro_batch,
            forward=forward,
        )
        self._peak_flops = peak_flops(device, precision)
        if self._peak_flops is None or data.progressive:  # NOTE: the number is of one image size
            return
        self._flops_per_image = train_flops_per_image(model, shape, forward=forward)
        self._flops_per_image += sum(map(count_own_flops, frozen))

    def read_beside(self, sidecar: Sidecar) -> None:
        """Training batches come with what `sidecar` keeps of their images."""
        self._loader.read_beside(sidecar)

    def steps(self, duration: Duration) -> int:
        """Optimizer steps that a duration is in this run."""
        return duration.steps(
            steps_per_epoch=self._loader.batches_per_epoch, global_batch=self.config.train.global_batch
        )

    def trainer(
        self,
        engine: Engine,
        objective: Objective,
        *,
        probe: ProbeConfig | None = None,
        name_classes: NameClasses | None = None,
        beside: Beside | None = None,
        follow: Callable[[int], None] = lambda step: None,
    ) -> Trainer:
        """Takes the run folder, writes the "run" event, starts its follower, and gives the loop over the data.

        With `probe` it is features that are evaluated, with `name_classes` towers for images and texts, else logits;
        with `beside` something else of the same passes too, and before the first step as well. `follow` is told the
        number of each step before it, and at evaluations.
        """
        folder = self._take_folder(total_steps=self._timetable.total_steps)
        self._progress.note(str(BatchShape.of(self.config, self.world)))
        checkpoints = CheckpointStore(
            folder.checkpoints,
            self.world,
            keep=self.config.train.keep_checkpoints,
            run_digest=folder.digest,
        )
        network, penalties = main_network(engine.module), self.config.model.attention.regularize
        if penalties:
            objective = Penalized(objective, network, penalties)
        if dynamic_blocks(network):
            objective = TokenLog(objective, network)
        seed_ranks(self.config.train.seed, self.world.rank)
        return Trainer(
            engine=engine,
            objective=objective,
            loader=self._loader,
            timetable=self._timetable,
            checkpoints=checkpoints,
            journal=self._journal(folder),
            safeguards=self._safeguards(folder),
            evaluator=None
            if self._evaluation is None
            else self._evaluation.of(
                network, self.index, probe=probe, beside=beside, name_classes=name_classes
            ),
            follow=follow,
        )

    def evaluate(self, model: nn.Module, probe: ProbeConfig) -> int:
        """A run that trains nothing: scores what `model` gives as features, and releases it as it is."""
        folder = self._take_folder(total_steps=0)
        journal = self._journal(folder)
        if self._evaluation is None:
            raise ConfigError("there is no data.val to score the features on")
        evaluator = self._evaluation.of_features(model, self.index, probe)
        scores, stopped_by = None, None
        with journal.failures_on_record(lambda: 0):
            try:
                scores = evaluator.scores(model)
                journal.evaluated(0, scores)
                journal.list_bad_samples(self.world)
            except Stopped:
                stopped_by = self.stop.agree(self.world)
        journal.ended(0, stopped_by)
        outcome = Outcome(step=0, stopped_by=stopped_by, scores=scores)
        if stopped_by is None and self.world.is_main:
            self._release(folder, model, model.state_dict(), outcome)
        return self._end(outcome)

    def close(
        self, engine: Engine, outcome: Outcome, *, others: Mapping[str, ModelConfig] | None = None
    ) -> int:
        """Releases a finished run's weights; returns the exit code (0 finished, 75 or 130 saved and stopped).

        `others` are the models of the networks that were trained beside the recipe's own, by name.
        """
        if outcome.stopped_by is None and self._folder is not None:
            try:
                weights = engine.release_weights()
                if self.world.is_main:
                    self._release(self._folder, engine.module, weights, outcome, others or {})
            except BaseException as error:  # the log said that the run is finished
                self._events.append("failed", error=f"release: {type(error).__name__}: {error}")
                raise
        return self._end(outcome)

    def _end(self, outcome: Outcome) -> int:
        if self._system_metrics is not None:
            self._system_metrics.stop()
        self._events.close()
        return outcome.exit_code

    def _take_folder(self, *, total_steps: int) -> RunFolder:
        """From here on the run has a folder, a log and a record."""
        folder = open_run_folder(self._command.out, self.config, self.world, fresh=self._command.fresh)
        self._folder = folder
        start_logging(folder, self.world)
        if self.world.is_main:
            self._start_record(folder, total_steps)
        return folder

    def _start_record(self, folder: RunFolder, total_steps: int) -> None:
        """The "run" event, what follows the log, and what samples the host."""
        self._events = EventLog(folder.events)
        start = describe_run(
            self._command, self.config, self.world, folder, self.index, val_index=self._val_index
        )
        self._run_id = start["run_id"]
        self._events.append("run", **start, total_steps=total_steps)
        if self._kernels:
            kernels = layers_by_kernel(self._kernels)
            self._events.append("kernels", kernels=kernels)
            counts = [f"{kernel} in {len(layers)} layers" for kernel, layers in kernels.items()]
            self._progress.note(f"attention: {', '.join(counts)}")
        if self._tuned:
            write_whole(folder.path / KERNELS_FILE, json.dumps(self._tuned) + "\n")
        if self._started_from is not None:
            self._record_weights(folder, self._started_from)
        start_follower(folder.path)
        if self.config.tracking.system_metrics:
            first = count_samples(folder.events)
            self._system_metrics = SystemMetrics(self._events, first=first, folder=folder.path)

    def _record_weights(self, folder: RunFolder, report: KeyReport) -> None:
        log.info("%s", report.summary())
        write_whole(folder.starting_weights, json.dumps(report.as_dict(), indent=1) + "\n")
        self._events.append(
            "starting_weights",
            reference=report.reference,
            **report.counts(),
            path=str(folder.starting_weights),
        )

    def _journal(self, folder: RunFolder) -> Journal:
        meter = Meter(
            self.world,
            global_batch=self.config.train.global_batch,
            flops_per_image=self._flops_per_image,
            peak_flops=self._peak_flops,
            gathers_in_forward=self.config.zero.stage == 3 or self._needs_captions,
        )
        return Journal(
            events=self._events, progress=self._progress, meter=meter, bad_lists=self._bad_lists(folder)
        )

    def _safeguards(self, folder: RunFolder) -> Safeguards:
        train, rank = self.config.train, self.world.rank
        # With fp16 a step may also be skipped because the loss scale is too large, and then halves it.
        halvings = train.loss_scale_power + 1 if train.precision == "fp16" else 0
        return Safeguards(
            watchdog=Watchdog(self._lifeline, timeout_s=train.watchdog_s, stacks=folder.stacks(rank)),
            rollback=Rollback(
                folder.skipped_windows,
                self.world,
                max_nonfinite=train.max_nonfinite + halvings,
                max_rollbacks=train.max_rollbacks,
                name_samples=self._name_samples,
            ),
        )

    def _name_samples(self, ids: Tensor) -> list[tuple[str, str]]:
        """Shard and key of training images, int64 [B] of ids."""
        names = SampleNames(self.index)
        try:
            return [(name.shard, name.key) for name in names.of(ids.numpy())]
        finally:
            names.close()

    def _bad_lists(self, folder: RunFolder) -> list[BadList]:
        path, limit = folder.bad_samples if self.world.is_main else None, self.config.data.max_bad_fraction
        lists = [BadList(path, self._loader, max_fraction=limit)]
        if self._evaluation is not None:
            lists.append(BadList(path, self._evaluation.loader, max_fraction=limit, data="val"))
        return lists

    def _release(
        self,
        folder: RunFolder,
        module: nn.Module,
        weights: Mapping[str, Tensor],
        outcome: Outcome,
        others: Mapping[str, ModelConfig] = MappingProxyType({}),
    ) -> None:
        origin = Origin(
            command=str(self._command),
            run_id=self._run_id,
            data_digest=self.index.digest,
            step=outcome.step,
        )
        for name, (model, own_weights) in reversed(released_parts(module, weights).items()):
            path = write_release(
                folder.release_of(name),
                model=model,
                weights=merge_lora(model, own_weights),
                config=self.config.model_copy(update={"model": others.get(name, self.config.model)}),
                # Features tell none apart.
                classes=self.index.classes if getattr(model, "num_classes", 0) else (),
                origin=origin,
                scores=None if name else outcome.scores,
                companion=None if name else companion_of(module, weights),
            )
            self._progress.note(f"released {path}")
        scores = {} if outcome.scores is None else outcome.scores.values()
        self._events.append("release", path=str(folder.release), step=outcome.step, scores=scores)


@contextmanager
def open_session(
    command: Command, config: RunConfig, *, needs_labels: bool = True, needs_captions: bool = False
) -> Iterator[Session]:
    """Joins the other ranks and opens the data; every mistake of the user's ends here or before `Session.trainer`.

    Without `needs_labels` the data may be without classes: what is learned does not come from labels. With
    `needs_captions` it comes from text, which then is with every batch.
    """
    with StopSignal() as stop:
        world = init_world()
        torch.manual_seed(config.train.seed)  # the same first weights on every rank
        with Lifeline(world) as lifeline:
            yield Session(
                command,
                config,
                world,
                stop,
                lifeline,
                needs_labels=needs_labels,
                needs_captions=needs_captions,
            )
            close_world()
