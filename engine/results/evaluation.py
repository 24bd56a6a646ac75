"""Evaluation: the validation images of a run, shared by its ranks, and who scores a network on them."""

from __future__ import annotations

from typing import Any

from torch import nn

from configs.training import ProbeConfig, RunConfig
from data_pipeline.index import ShardIndex
from data_pipeline.loader import EvalLoader
from engine.kept_tokens import KeptTokens
from engine.results.beside import Several
from engine.results.evaluate import Beside, Evaluator
from engine.results.labelled_sample import LabelledSample
from engine.results.probe import FeatureEvaluator
from engine.results.zero_shot import NameClasses, ZeroShotEvaluator
from engine.survival.preempt import StopSignal
from engine.world import World
from models.dynamic import dynamic_blocks


class Evaluation:
    """Gives the evaluator of a network by its logits, of its features, or of towers for images and texts."""

    def __init__(self, index: ShardIndex, config: RunConfig, *, world: World, stop: StopSignal) -> None:
        self._index = index
        self._config = config
        self._world = world
        self._stop = stop
        self.loader = self._load(index)

    def of(
        self,
        network: nn.Module,
        train_index: ShardIndex,
        *,
        probe: ProbeConfig | None,
        beside: Beside | None,
        name_classes: NameClasses | None,
    ) -> Evaluator:
        """By names where they are given, else of features where `probe` is, else by logits."""
        if name_classes is not None:
            return self.by_names(network, name_classes)
        if probe is not None:
            return self.of_features(network, train_index, probe)
        return self.of_logits(network, beside)

    def of_logits(self, network: nn.Module, beside: Beside | None) -> Evaluator:
        """With `beside` something else of the same passes is measured too, and before the first step as well."""
        tokens = self._tokens(network)
        both = [one for one in (beside, tokens) if one is not None]
        watched = Several(both) if len(both) > 1 else beside or tokens
        return Evaluator(**self._common(), beside=watched, scores_start=beside is not None)

    def of_features(
        self, network: nn.Module, train_index: ShardIndex, probe: ProbeConfig
    ) -> FeatureEvaluator:
        """By the neighbours, and by a classifier, of a part of the labelled training images."""
        sample = LabelledSample(train_index, self._config.data, size=probe.max_images)
        return FeatureEvaluator(
            **self._common(),
            beside=self._tokens(network),
            train_batches=self._stop.between(self._load(sample), self._world),
            num_train=sample.num_samples,
            num_classes=len(sample.classes),
            probe=probe,
        )

    def by_names(self, network: nn.Module, name_classes: NameClasses) -> ZeroShotEvaluator:
        """By what the classes are called."""
        return ZeroShotEvaluator(
            **self._common(), beside=self._tokens(network), tokens=name_classes(self._index.classes)
        )

    def _tokens(self, network: nn.Module) -> KeptTokens | None:
        """Where their number follows the image."""
        return KeptTokens(network, self._world) if dynamic_blocks(network) else None

    def _load(self, index: ShardIndex) -> EvalLoader:
        share = -(-self._config.train.global_batch // self._world.size)
        return EvalLoader(
            index, self._config.data, batch_size=share, rank=self._world.rank, world_size=self._world.size
        )

    def _common(self) -> dict[str, Any]:
        data = self._config.data
        return {
            "batches": self._stop.between(self.loader, self._world),
            "mean": data.mean,
            "std": data.std,
            "world": self._world,
            "scores_raw": self._config.train.evaluate_raw,
        }
