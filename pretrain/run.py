"""A pretraining run, in data order: shards -> stream -> model -> ZeRO engine -> checkpoints -> release."""

from __future__ import annotations

from torch import nn

from configs.load import load_config
from configs.training import ProbeConfig
from engine.command import Command
from engine.objective import Objective
from engine.session import open_session
from engine.sharding.zero import build_engine
from engine.world import ALONE, World
from models.build import build_model
from models.supernet import PathSwitch
from pretrain.config import MaeConfig, PretrainConfig, SiglipConfig, SimMimConfig
from pretrain.contrastive import build_siglip, naming_of
from pretrain.dry_forward import dry_forward
from pretrain.masked import build_mae, build_simmim
from pretrain.objectives import Supervised


def run(command: Command) -> int:
    """Trains one rank's share of the run; returns the exit code (0 finished, 75 or 130 saved and stopped)."""
    config = load_config(PretrainConfig, command.recipe, command.overrides).config
    with open_session(
        command, config, needs_labels=config.is_supervised, needs_captions=config.needs_captions
    ) as session:
        model, objective = build_task(config, num_classes=len(session.index.classes), world=session.world)
        session.examine(model, forward=dry_forward(objective))
        engine = build_engine(model, config, session.world)
        paths = PathSwitch(engine.module, seed=config.train.seed)
        trainer = session.trainer(
            engine,
            objective,
            probe=probe_of(config),
            name_classes=naming_of(config.objective),
            follow=paths.follow,
        )
        return session.close(engine, trainer.fit(session.stop))


def probe_of(config: PretrainConfig) -> ProbeConfig | None:
    """How features are evaluated; None where there is a classifier, or where names stand for one."""
    return None if config.is_supervised or config.needs_captions else config.probe or ProbeConfig()


def build_task(
    config: PretrainConfig, *, num_classes: int, world: World = ALONE
) -> tuple[nn.Module, Objective]:
    """The network to train, and what it is trained for."""
    data, seed = config.data, config.train.seed
    network = build_model(
        config.model,
        num_classes=max(num_classes, 1),  # of what learns from images alone the classifier is taken off again
        in_chans=data.channels,
        image_size=data.image_size,
        other_sizes=data.image_sizes[:-1],
        mean=data.mean,
        std=data.std,
    )
    match config.objective:
        case MaeConfig() as mae:
            return build_mae(network, mae, mean=data.mean, std=data.std, seed=seed)
        case SimMimConfig() as simmim:
            return build_simmim(network, simmim, mean=data.mean, std=data.std, seed=seed)
        case SiglipConfig() as siglip:
            checkpointing = config.train.activation_checkpointing
            return build_siglip(
                network,
                siglip,
                mean=data.mean,
                std=data.std,
                world=world,
                activation_checkpointing=checkpointing,
            )
    supervised = Supervised(
        mean=data.mean,
        std=data.std,
        label_fraction=data.batch_label_fraction,
        label_smoothing=config.train.label_smoothing,
    )
    return network, supervised
