"""python -m pretrain.path_scores RUN: scores paths of the supernet that RUN trained, one for each line it is given.

    [0, 2, 1, 1]  on standard input  ->  {"top1": 87.5, "loss": 0.41}  on standard output

Images are those that RUN held out (``data.held_out``), never those of ``data.val``. Before each path batch norm gets
the statistics of this path, from a few batches as the training had them. Both are read once and kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from configs.exit_code import run_main
from configs.load import load_config
from data_pipeline.batch import Batch, normalize
from data_pipeline.joined import open_training
from data_pipeline.loader import EvalLoader, ShardLoader
from data_pipeline.mix import mix_images
from data_pipeline.part import held_out
from engine.results.evaluate import Evaluator, Scores
from engine.results.labelled_sample import LabelledSample
from engine.world import World
from models.build import load_release
from models.recalibrate import recalibrate
from models.supernet import set_path
from pretrain.config import PretrainConfig

NUM_CALIBRATION = 20
"""Batches of `train.global_batch` images for the statistics of a path."""
MAX_IMAGES = 10_000
"""Most held-out images that a path is scored on, a fixed choice; they are kept in memory."""
_BATCH_SIZE = 200


class PathScorer:
    """A trained supernet, and the images that its paths are compared on."""

    def __init__(self, run: Path, *, device: torch.device) -> None:
        config = load_config(PretrainConfig, run / "config.yaml").config
        # Read once, in this process: workers would have to be started for it.
        data = config.data.model_copy(update={"workers": 0})
        index = open_training(data)
        if not data.held_out:
            raise ConfigError(
                "data.held_out is 0: paths are compared on images that are not trained on; set it to 0.1 or so"
            )
        self._data = data
        self._world = World(rank=0, size=1, local_rank=0, device=device)
        self._model: nn.Module = load_release(str(run)).to(device).eval()
        loader = ShardLoader(
            index,
            data.model_copy(update={"progressive": ()}),  # statistics are of the size that is scored
            global_batch=config.train.global_batch,
            seed=config.train.seed,
            duration=config.train.duration,
        )
        self._training = list(islice(loader, NUM_CALIBRATION))
        # What is held out is all of this index: nothing of it is held out again.
        chosen = LabelledSample(
            held_out(index, data), data.model_copy(update={"held_out": 0.0}), size=MAX_IMAGES
        )
        self._evaluator = Evaluator(
            batches=list(EvalLoader(chosen, data, batch_size=_BATCH_SIZE)),
            mean=data.mean,
            std=data.std,
            world=self._world,
        )

    def score(self, path: tuple[int, ...]) -> Scores:
        """Of one path, with statistics of its own; what was scored before makes no difference."""
        set_path(self._model, path)
        recalibrate(self._model, self._calibration())
        return self._evaluator.scores(self._model)

    def _calibration(self) -> Iterator[Tensor]:
        for batch in self._training:
            yield self._inputs(batch.to(self._world.device))

    def _inputs(self, batch: Batch) -> Tensor:
        return mix_images(normalize(batch.images, self._data.mean, self._data.std), batch.mix)


def main(arguments: Sequence[str]) -> int:
    """Answers until there are no more lines."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.path_scores", allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder of the supernet, with its release")
    given = parser.parse_args(arguments)
    # What libraries print is no answer: it goes where errors go.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    scorer = PathScorer(given.run, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for line in sys.stdin:
        scores = scorer.score(tuple(json.loads(line)))
        answers.write(json.dumps({"top1": scores.top1, "loss": scores.loss}) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
