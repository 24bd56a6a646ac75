"""models.supernet: each path is the plain network with the same gates and weights, and each is drawn as often."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.attention import SupernetConfig
from configs.base import ConfigError
from configs.training import ModelConfig
from models.attention_maps import look
from models.build import CONFIG_FILE, SIGNATURE, build_model, load_release
from models.complexity import count_flops
from models.path_costs import measure_paths
from models.recalibrate import recalibrate
from models.release import save_for_timm
from models.supernet import PathSwitch, path_at, path_shape, searched_stages, set_path
from models.surgery import build_from_source
from models.weight_source import WeightSource

NETWORK = {"name": "small_resnet", "args": {"channels": [8, 8, 16, 16], "layers": [1, 2, 1, 1]}}
TIMMS = {"name": "resnet26", "args": {"channels": [4, 4, 8, 8]}}
CHOICES: list[Any] = [
    "none",
    {"name": "se", "reduction": 4},
    {"name": "cbam"},
    {"name": "shifted_window", "window": 2},
]
SEARCH = {"choices": CHOICES, "stages": [0, 2, 3]}
SHAPE = (4, 4, 4)
SIDE = 16


def build(attention: dict[str, Any], network: dict[str, Any] = NETWORK) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**network, "attention": attention})
    return build_model(config, num_classes=5, in_chans=3, image_size=SIDE)


def supernet(network: dict[str, Any] = NETWORK, **changes: Any) -> nn.Module:
    model = build({"search": {**SEARCH, **changes}}, network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # some gates begin as the identity
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def plain(path: tuple[int, ...], network: dict[str, Any] = NETWORK) -> nn.Module:
    """What the recipe of a path builds."""
    config = SupernetConfig.model_validate(SEARCH)
    gates = [group.model_dump() for group in config.gates(path, stages=(0, 2, 3))]
    return build({"gates": gates}, network)


def weights_of_path(model: nn.Module, path: tuple[int, ...]) -> dict[str, Tensor]:
    """The supernet's weights that a path uses, by the names that they have in the plain network."""
    chosen = dict(zip((0, 2, 3), path, strict=True))
    found = {}
    for name, tensor in model.state_dict().items():
        place, dot, rest = name.partition(".candidates.")
        stage = 0 if place.startswith("act1") else int(place[len("layer")]) if dot else -1
        index, _, inner = rest.partition(".")
        if not dot:
            found[name] = tensor
        elif int(index) == chosen[stage]:
            found[f"{place}.{inner}"] = tensor
    return found


@pytest.mark.parametrize("network", [NETWORK, TIMMS], ids=["small_resnet", "resnet26"])
@pytest.mark.parametrize("path", [(0, 0, 0), (1, 2, 0), (0, 3, 2), (2, 3, 1)])
def test_a_path_is_the_plain_network_in_output_and_gradient(
    path: tuple[int, ...], network: dict[str, Any]
) -> None:
    model, other = supernet(network), plain(path, network)
    set_path(model, path)
    other.load_state_dict(weights_of_path(model, path))
    images = torch.rand(4, 3, SIDE, SIDE)
    for network_ in (model, other):
        network_.train()
    found, wanted = model(images), other(images)
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(own) == len(gradients)
    for gradient, expected in zip(own.values(), gradients.values(), strict=True):
        assert expected is not None and torch.equal(gradient, expected)


def test_the_operations_of_a_path_are_those_of_the_plain_network() -> None:
    model, shape = supernet(), (3, SIDE, SIDE)
    costs = measure_paths(model, shape)
    assert (costs.stages, path_shape(model)) == ((0, 2, 3), SHAPE)
    for path in ((0, 0, 0), (3, 1, 2), (2, 3, 3)):
        assert costs.flops(path) == count_flops(plain(path), shape)


def test_each_choice_of_a_stage_comes_once_in_a_round_in_an_order_that_seed_and_step_decide() -> None:
    shape = (3, 5)
    paths = [path_at(step, seed=7, shape=shape) for step in range(150)]
    for stage, num_choices in enumerate(shape):
        for first in range(0, 150, num_choices):
            drawn = [path[stage] for path in paths[first : first + num_choices]]
            assert sorted(drawn) == list(range(num_choices))
    assert len(set(paths)) == 15  # all combinations, not those of one order alone
    assert Counter(paths).most_common(1)[0][1] < 25
    assert paths[40] == path_at(40, seed=7, shape=shape)
    assert paths != [path_at(step, seed=8, shape=shape) for step in range(150)]


def test_the_switch_sets_the_path_of_the_step_whatever_was_before() -> None:
    first, second = supernet(), supernet()
    images = torch.rand(2, 3, SIDE, SIDE)
    switch = PathSwitch(first, seed=3)
    for step in range(6):
        switch.follow(step)
    PathSwitch(second, seed=3).follow(5)
    assert torch.equal(first.eval()(images), second.eval()(images))
    PathSwitch(build({}), seed=3).follow(5)  # no supernet: nothing to do


def test_all_is_every_stage_but_the_stem() -> None:
    assert searched_stages(supernet(stages="all")) == [1, 2, 3, 4]


def test_statistics_are_those_of_the_images_that_they_are_measured_on() -> None:
    model = supernet()
    set_path(model, (1, 2, 0))
    batches = [torch.rand(6, 3, SIDE, SIDE) * scale for scale in (1.0, 3.0)]
    recalibrate(model, batches)
    norm: Any = model.bn1
    inputs = [model.conv1(batch).detach() for batch in batches]
    means = torch.stack([seen.mean((0, 2, 3)) for seen in inputs])
    variances = torch.stack([seen.var((0, 2, 3)) for seen in inputs])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert norm.momentum == 0.1 and not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("network", "choices", "said"),
    [
        (
            {"name": "vit_tiny_patch16_224"},
            CHOICES,
            "search: VisionTransformer has no ResNet stages to put 'se' in",
        ),
        (
            NETWORK,
            ["none", {"name": "eca", "reduction": 4}],
            "model.attention.search.reduction: 'eca' has no such",
        ),
        ({"name": "seresnet18"}, ["none", {"name": "eca"}], "search: the network has SEModule already"),
    ],
)
def test_what_has_no_place_is_an_error(network: dict[str, Any], choices: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build({"search": {"choices": choices}}, network)


def test_its_candidates_have_no_maps_and_nothing_is_fine_tuned_from_it() -> None:
    with pytest.raises(ConfigError, match="candidates, of which one is active"):
        look(supernet(), torch.rand(1, 3, SIDE, SIDE), of="gate")
    config = ModelConfig.model_validate({**NETWORK, "attention": {"search": SEARCH}})
    source = WeightSource(
        reference="runs/s", location="", architecture="small_resnet", attention=config.attention
    )
    with pytest.raises(ConfigError, match="'runs/s' is a supernet, whose weights many networks share"):
        build_from_source(config, source, num_classes=5, in_chans=3, image_size=SIDE)


def test_a_release_comes_back_as_it_was(tmp_path: Path) -> None:
    model = supernet().eval()
    grey: Any = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "classes": "abcde"}
    save_for_timm(model, model.state_dict(), tmp_path, input_size=(3, SIDE, SIDE), **grey)
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    content[SIGNATURE] = {"attention": {"search": SEARCH}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
    again, images = load_release(str(tmp_path)).eval(), torch.rand(2, 3, SIDE, SIDE)
    for path in ((0, 0, 0), (3, 2, 1)):
        set_path(model, path)
        set_path(again, path)
        assert torch.equal(again(images), model(images))
