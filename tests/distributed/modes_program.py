"""Ranks of test_modes: each way to fine-tune at each ZeRO stage, with EMA, saved and resumed, released and merged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.modes import LastBlocksMode, LinearProbeMode, LoraMode, Mode
from engine.saving.checkpoint import CheckpointStore
from engine.sharding.zero import Engine, build_engine
from engine.world import World, close_world, init_world
from finetune.modes import apply_mode
from models.attention import use_attend
from models.freezing import count_trained
from models.lora import merge_lora
from tests.support.tiny_run import SIZE, MemoryLoader, Supervised, tiny_config, tiny_model

NUM_STEPS, SAVED_AT = 4, 2
LEARNING_RATE = 1e-2
MODES: tuple[Mode, ...] = (
    LinearProbeMode(name="linear_probe"),
    LastBlocksMode(name="last_blocks", count=1),
    LoraMode(name="lora", rank=2, alpha=4.0),
)
STAGES = {"linear_probe": (0, 3), "last_blocks": (2,), "lora": (0, 1, 2, 3)}
"""Freezing is the same in all; what is left out is the time of the suite."""


def plain_model() -> nn.Module:
    """As plain timm has it, the same weights each time."""
    model = tiny_model(drop_path=0.0)
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    return model.eval()


def build(mode: Mode) -> nn.Module:
    """The network that is trained; LoRA draws its first weights from the same seed."""
    model = use_attend(plain_model()).train()
    torch.manual_seed(7)
    apply_mode(model, mode)
    return model


def train(engine: Engine, loader: MemoryLoader, steps: range) -> list[float]:
    """Loss of the global batch at each step."""
    losses = []
    for step in steps:
        loss = Supervised()(engine.model, loader.batch(step)).total
        engine.accumulate(loss, last=True)
        engine.step(step, learning_rate=LEARNING_RATE)
        losses.append(float(engine.world.sum(loss.detach())) / engine.world.size)
    return losses


def check(stage: int, mode: Mode, folder: Path, world: World) -> list[float]:
    """Trains, and trains again from the middle; both release the same, which plain timm computes with."""
    config = tiny_config(stage=stage, steps=NUM_STEPS, world_size=world.size)
    store = CheckpointStore(folder, world, keep=1, run_digest="modes")
    loader = MemoryLoader(world)
    trained = count_trained(build(mode))[0]
    engine = build_engine(build(mode), config, world)
    losses = train(engine, loader, range(SAVED_AT))
    store.save(SAVED_AT, engine, shared={}, own={})
    while store.settle(wait=True) is not None:
        pass
    losses += train(engine, loader, range(SAVED_AT, NUM_STEPS))
    check_optimizer(engine, trained)
    images = loader.batch(0).images[:4].float() / 255
    with engine.evaluation() as model, torch.no_grad():
        logits = model(images)
    released = engine.release_weights()
    again = build_engine(build(mode), config, world)
    if store.load_newest(again) is None:
        raise AssertionError("nothing was saved")
    train(again, loader, range(SAVED_AT, NUM_STEPS))
    resumed = again.release_weights()
    if world.is_main:
        check_equal(released, resumed)
        check_release(merge_lora(engine.module, released), images, logits, mode)
    return losses


def check_optimizer(engine: Engine, trained: int) -> None:
    """What is frozen has no state: the numbers of all ranks together are those that are trained, and padding."""
    optimizer: Any = engine._wrapped.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    own = sum(state["exp_avg"].numel() for state in states)
    total = int(engine.world.sum(torch.tensor(float(own))))
    expected = trained * engine.world.size if engine.stage == 0 else trained
    assert expected <= total <= expected + 200, (engine.stage, total, expected)


def check_equal(released: dict[str, Tensor], resumed: dict[str, Tensor]) -> None:
    differing = [name for name in released if not torch.equal(released[name], resumed[name])]
    assert not differing, differing


def check_release(weights: dict[str, Tensor], images: Tensor, logits: Tensor, mode: Mode) -> None:
    plain = plain_model()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    plain.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), logits, rtol=1e-4, atol=1e-5)
    moved = {name for name in before if not torch.equal(before[name], weights[name])}
    expected = {
        "linear_probe": ("head.",),
        "last_blocks": ("blocks.1.", "norm.", "head."),
        "lora": ("blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.1.attn.qkv.weight")
        + ("blocks.1.attn.proj.weight", "head."),
    }[mode.name]
    assert moved == {name for name in before if name.startswith(expected)}, sorted(moved)


def main() -> None:
    world, out = init_world(), Path(sys.argv[1])
    losses = {
        f"{mode.name}, stage {stage}": check(stage, mode, out / f"{mode.name}-{stage}", world)
        for mode in MODES
        for stage in STAGES[mode.name]
    }
    if world.is_main:
        print(json.dumps(losses))
    close_world()


if __name__ == "__main__":
    main()
