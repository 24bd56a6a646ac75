"""A pretraining run, in data order: shards -> stream -> model -> ZeRO engine -> checkpoints -> release."""

from __future__ import annotations

from configs.load import load_config
from engine.command import Command
from engine.session import open_session
from engine.zero import build_engine
from models.build import build_model
from pretrain.config import PretrainConfig
from pretrain.objectives import Supervised


def run(command: Command) -> int:
    """Trains one rank's share of the run; returns the exit code (0 finished, 75 or 130 saved and stopped)."""
    config = load_config(PretrainConfig, command.recipe, command.overrides).config
    with open_session(command, config) as session:
        data = config.data
        model = build_model(
            config.model,
            num_classes=len(session.index.classes),
            in_chans=data.channels,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
        )
        objective = Supervised(
            mean=data.mean,
            std=data.std,
            label_fraction=data.batch_label_fraction,
            label_smoothing=config.train.label_smoothing,
        )
        engine = build_engine(model, config, session.world)
        outcome = session.trainer(engine, objective).fit(session.stop)
        return session.close(engine, outcome)
