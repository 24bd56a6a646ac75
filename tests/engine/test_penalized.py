"""engine.penalized: an objective's loss with weighted penalties, its parts logged beside them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from configs.attention import PenaltyConfig
from data_pipeline.batch import Batch
from engine.objective import Loss, look_ahead
from engine.penalized import Penalized
from engine.world import World
from tests.support.curious import Curious
from tests.support.tiny_run import MemoryLoader, tiny_model

PENALTIES = [
    PenaltyConfig(name="uniform", weight=0.25),
    PenaltyConfig(name="entropy", weight=2.0, floor=0.99),
]


class Wrapper(nn.Module):
    """What an engine hands to objectives: not the network itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits


def plain(model: nn.Module, batch: Batch) -> Loss:
    return Loss(total=model(batch.images.float() / 255).square().mean())


def in_parts(model: nn.Module, batch: Batch) -> Loss:
    total = plain(model, batch).total
    return Loss(total=2 * total, parts={"logits": total})


def tiny_network() -> nn.Module:
    """Queries and keys large enough that attention is not alike everywhere."""
    network = tiny_model(drop_path=0.0)
    for name, parameter in network.named_parameters():
        if name.endswith("qkv.weight"):
            parameter.data *= 20
    return network


def one_batch() -> Batch:
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    return MemoryLoader(alone).batch(0)


def test_the_penalties_are_added_with_their_weights_and_logged_without() -> None:
    network, batch = tiny_network(), one_batch()
    loss = Penalized(plain, network, PENALTIES)(Wrapper(network), batch)
    assert list(loss.parts) == ["task", "attention_uniform", "attention_entropy"]
    values = {name: value.item() for name, value in loss.parts.items()}
    assert values["task"] == pytest.approx(plain(network, batch).total.item())
    assert values["attention_uniform"] > 0 and values["attention_entropy"] > 0
    expected = values["task"] + 0.25 * values["attention_uniform"] + 2 * values["attention_entropy"]
    assert loss.total.item() == pytest.approx(expected)


def test_parts_of_the_objective_stay() -> None:
    network = tiny_network()
    loss = Penalized(in_parts, network, PENALTIES[:1])(network, one_batch())
    assert list(loss.parts) == ["logits", "attention_uniform"]


def test_micro_batches_average_to_the_whole() -> None:
    network, batch = tiny_network(), one_batch()
    objective = Penalized(plain, network, PENALTIES)
    whole = objective(network, batch).total
    halves = torch.stack([objective(network, half).total for half in batch.split(len(batch) // 2)])
    torch.testing.assert_close(halves.mean(), whole)


def test_evaluation_between_two_steps_leaves_nothing_behind() -> None:
    network, batch = tiny_network(), one_batch()
    objective = Penalized(plain, network, PENALTIES)
    before = objective(network, batch).total.item()
    with torch.no_grad():
        network.eval()(batch.images.float())
    network.train()(batch.images.float())
    assert objective(network, batch).total.item() == pytest.approx(before)


def test_gates_are_penalized_in_a_network_of_timm() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=5)
    loss = Penalized(plain, network, [PenaltyConfig(name="gate_l1", weight=1.0)])(network, one_batch())
    assert 0.1 < loss.parts["attention_gate_l1"].item() < 0.9


def test_the_objective_within_is_shown_what_will_come() -> None:
    network, batch, curious = tiny_network(), one_batch(), Curious(plain)
    look_ahead(Penalized(curious, network, PENALTIES), network, batch.split(8))
    assert curious.shown == [8, 8]
    look_ahead(Penalized(plain, network, PENALTIES), network, batch.split(8))  # which wants to see nothing
