"""models.gates: the formulas of the papers in plain PyTorch, timm's own networks, and what has no place."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers.create_attn import get_attn
from torch import Tensor, nn

from configs.attention import GateConfig, GatesConfig
from configs.base import ConfigError
from configs.training import ModelConfig
from models.build import CONFIG_FILE, SIGNATURE, WEIGHTS_FILE, build_model, load_release
from models.complexity import count_flops
from models.gates import new_gate, use_gates
from models.layer_order import layer_order
from models.release import save_for_timm
from models.surgery import build_from_source
from models.weight_source import open_source

ALL_NAMES = GatesConfig.model_json_schema()["properties"]["name"]["enum"]
SMALL = {"channels": [16, 24, 32, 48], "layers": [1, 1, 1, 1]}


def gated(name: str, *, stages: Any = "all", architecture: str = "resnet18", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(architecture, num_classes=5, channels=SMALL["channels"])
    config = GatesConfig.model_validate({"name": name, "stages": stages, **settings})
    return awake(use_gates(model, [config])).eval()


def awake(model: nn.Module) -> nn.Module:
    """Weights that a new network begins with at zero or one get values, so that nothing is compared with nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def maps(channels: int = 16, side: int = 9) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["se", "eca", "cbam", "gc", "ela", "nl"])
def test_in_all_stages_it_is_timms_network_with_this_layer_name_by_name_and_logit_by_logit(name: str) -> None:
    ours = gated(name)
    layer = partial(get_attn(name), rd_divisor=8) if name in ("cbam", "gc") else name  # where timm's own is 1
    timms = timm.create_model(
        "resnet18", num_classes=5, channels=SMALL["channels"], block_args={"attn_layer": layer}
    ).eval()
    timms.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours(images), timms(images))


@pytest.mark.parametrize("name", ALL_NAMES)
def test_the_operations_of_every_gate_can_be_counted(name: str) -> None:
    plain = count_flops(timm.create_model("resnet18", num_classes=5, channels=SMALL["channels"]), (3, 64, 64))
    assert plain <= count_flops(gated(name), (3, 64, 64)) < 2 * plain


def test_weights_of_seresnet18_load_as_they_are() -> None:
    model = use_gates(timm.create_model("resnet18"), [GatesConfig(name="se")])
    model.load_state_dict(timm.create_model("seresnet18").state_dict())


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_gate_stands_in_the_stages_named_and_learns(name: str) -> None:
    model = gated(name, stages=[0, 2]).train()
    plain = timm.create_model("resnet18", num_classes=5, channels=SMALL["channels"])
    assert set(plain.state_dict()) <= set(model.state_dict())
    added = {key.split(".")[0] for key in set(model.state_dict()) - set(plain.state_dict())}
    assert added == (set() if name == "lrn" else {"act1", "layer2"})
    assert model.layer1[0].se is None and model.layer2[0].se is not None
    images = torch.rand(4, 3, 64, 64)
    before = plain.eval()
    before.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(model.eval()(images), before(images))
    model.train()(images).square().sum().backward()
    silent = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert silent == []


@pytest.mark.parametrize("reduction", [2, 4, 16])
def test_squeeze_and_excitation_is_the_formula_of_the_paper(reduction: int) -> None:
    gate = gated("se", reduction=reduction, architecture="resnet18").layer4[0].se
    x = maps(48)
    w1, b1, w2, b2 = (p.detach() for p in (gate.fc1.weight, gate.fc1.bias, gate.fc2.weight, gate.fc2.bias))
    assert w1.shape[0] == max(8, round(48 / reduction / 8) * 8)  # timm: multiples of 8
    hidden = torch.relu(x.mean((2, 3)) @ w1.flatten(1).T + b1)
    weights = torch.sigmoid(hidden @ w2.flatten(1).T + b2)
    torch.testing.assert_close(gate(x), x * weights[:, :, None, None])


@pytest.mark.parametrize("channels", [16, 48, 64, 256])
def test_efficient_channel_attention_is_the_formula_of_the_paper(channels: int) -> None:
    torch.manual_seed(0)
    model = use_gates(timm.create_model("resnet18", channels=[channels] * 4), [GatesConfig(name="eca")])
    gate: Any = model.layer1[0].se
    # Wang et al. 2020, equation 12: the odd number next to |log2(C) / 2 + 1 / 2|.
    wanted = int(abs(math.log2(channels) / 2 + 0.5))
    width = max(3, wanted if wanted % 2 else wanted + 1)
    assert gate.conv.weight.shape == (1, 1, width)
    x = maps(channels, 5)
    pooled = F.pad(x.mean((2, 3)), (width // 2, width // 2))
    taps = gate.conv.weight.detach().flatten()
    mixed = torch.stack([(pooled[:, c : c + width] * taps).sum(1) for c in range(channels)], dim=1)
    torch.testing.assert_close(gate(x), x * torch.sigmoid(mixed)[:, :, None, None])


def test_cbam_is_the_formula_of_the_paper_with_a_7x7_convolution() -> None:
    gate = gated("cbam").layer4[0].se
    x = maps(48)
    w1, w2 = (p.detach().flatten(1) for p in (gate.channel.fc1.weight, gate.channel.fc2.weight))
    pools = [torch.relu(pool @ w1.T) @ w2.T for pool in (x.mean((2, 3)), x.amax((2, 3)))]
    refined = x * torch.sigmoid(pools[0] + pools[1])[:, :, None, None]
    kernel, norm = gate.spatial.conv.conv.weight.detach(), gate.spatial.conv.bn
    assert kernel.shape == (1, 2, 7, 7)
    planes = torch.stack([refined.mean(1), refined.amax(1)], dim=1)
    scores = F.conv2d(planes, kernel, padding=3)
    scores = (scores - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(gate(x), refined * torch.sigmoid(scores.detach()))


@pytest.mark.parametrize("channels", [12, 24, 48, 96, 256])
@pytest.mark.parametrize("reduction", [4, 16])
def test_equal_reduction_is_an_equal_hidden_width_whatever_the_gate(channels: int, reduction: int) -> None:
    def width(name: str) -> int:
        config = GateConfig.model_validate({"name": name, "reduction": reduction})
        hidden = [m for key, m in new_gate(config, channels, 0).named_modules() if key.endswith("fc1")]
        return int(hidden[0].out_channels)  # type: ignore[arg-type]

    widths = {name: width(name) for name in ("se", "cbam", "lcbam", "gc", "gca")}
    assert set(widths.values()) == {widths["se"]} and widths["se"] % 8 == 0


@pytest.mark.parametrize("name", ["cbam", "lcbam", "gc", "gca"])
def test_in_a_resnet50_the_hidden_widths_are_those_of_timm(name: str) -> None:
    shapes = [
        {key: tensor.shape for key, tensor in model.state_dict().items() if ".se." in key}
        for model in (
            use_gates(timm.create_model("resnet50"), [GatesConfig.model_validate({"name": name})]),
            timm.create_model("resnet50", block_args={"attn_layer": name}),
        )
    ]
    assert shapes[0] == shapes[1]


def test_settings_reach_the_layer() -> None:
    assert gated("cbam", kernel_size=3).layer1[0].se.spatial.conv.conv.kernel_size == (3, 3)
    assert gated("eca", kernel_size=9).layer1[0].se.conv.kernel_size == (9,)
    assert gated("lrn", kernel_size=7).layer1[0].se.size == 7
    assert gated("mhsa", heads=4).layer1[0].se.attn.num_heads == 4
    assert gated("window", window=4).layer1[0].se.window_size == (4, 4)


def test_a_gate_belongs_to_the_layer_in_which_it_stands() -> None:
    order = layer_order(gated("se", stages=[0, 2]))
    assert order["act1.1.fc1.weight"] == order["conv1.weight"] == 0
    assert order["layer2.0.se.fc1.weight"] == order["layer2.0.conv2.weight"]


def test_bottlenecks_have_their_gate_behind_the_last_convolution() -> None:
    model = use_gates(timm.create_model("resnet26", num_classes=5), [GatesConfig(name="se", stages=(3,))])
    timms = timm.create_model("resnet26", num_classes=5, block_args={"attn_layer": "se"})
    wanted = {name: tensor.shape for name, tensor in timms.state_dict().items() if "layer3.0.se" in name}
    found = {name: tensor.shape for name, tensor in model.state_dict().items() if ".se." in name}
    assert {name: found[name] for name in wanted} == wanted
    assert {name.split(".")[0] for name in found} == {"layer3"}


@pytest.mark.parametrize(
    ("architecture", "settings", "said"),
    [
        (
            "vit_tiny_patch16_224",
            {"name": "se"},
            "VisionTransformer has no ResNet stages to put 'se' in; use a ResNet",
        ),
        ("resnet18", {"name": "se", "stages": [2, 5, 7]}, "5, 7, but the network has stages 1 to 4"),
        (
            "seresnet18",
            {"name": "cbam"},
            "has SEModule already where 'cbam' would stand; use the plain ResNet",
        ),
        ("skresnet18", {"name": "se"}, "blocks of the kind SelectiveKernelBasic have no place for a gate"),
        ("resnet18", {"name": "cbam", "kernel_size": 4}, "kernel_size: 4 has no middle; use an odd number"),
        ("resnet18", {"name": "mhsa", "heads": 7}, "heads: 7 do not divide the 64 channels of a stage"),
        (
            "resnet18",
            {"name": "eca", "reduction": 4},
            r"reduction: 'eca' has no such setting \(it takes kernel_size\)",
        ),
        ("resnet18", {"name": "ela", "window": 4}, r"window: 'ela' has no such setting \(it takes none\)"),
    ],
)
def test_what_has_no_place_is_an_error(architecture: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        use_gates(timm.create_model(architecture), [GatesConfig.model_validate(settings)])


def gated_config(**changes: Any) -> ModelConfig:
    gates = {"name": "cbam", "stages": [0, 3]}
    attention = {"gates": gates, **changes}
    return ModelConfig.model_validate({"name": "resnet18", "args": SMALL, "attention": attention})


def release(folder: Path) -> nn.Module:
    """What a run of a gated network leaves behind."""
    config = gated_config()
    model = build_model(config, num_classes=5, in_chans=1, image_size=32, mean=(0.3,), std=(0.4,))
    model = awake(model).eval()
    folder.mkdir()
    save_for_timm(
        model, model.state_dict(), folder, input_size=(1, 32, 32), mean=(0.3,), std=(0.4,), classes="abcde"
    )
    content = json.loads((folder / CONFIG_FILE).read_text())
    lasting = config.attention.model_dump(mode="json", include={"gates"}, exclude_defaults=True)
    (folder / CONFIG_FILE).write_text(json.dumps({**content, SIGNATURE: {"attention": lasting}}))
    return model


def test_a_release_with_gates_comes_back_as_it_was(tmp_path: Path) -> None:
    model, images = release(tmp_path / "release"), torch.rand(3, 1, 32, 32)
    assert torch.equal(load_release(str(tmp_path / "release")).eval()(images), model(images))


def test_training_goes_on_from_a_release_with_gates_and_with_other_classes(tmp_path: Path) -> None:
    model = release(tmp_path / "release")
    reference = str(tmp_path / "release")
    started, report = build_from_source(
        gated_config(), open_source(reference), num_classes=7, in_chans=1, image_size=48
    )
    assert report.reset.keys() == {"fc.weight", "fc.bias"} and not (report.missing or report.unexpected)
    for name, tensor in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(started.state_dict()[name], tensor), name
    assert started(torch.rand(2, 1, 48, 48)).shape == (2, 7)


def test_a_release_with_gates_and_a_recipe_without_them_is_an_error(tmp_path: Path) -> None:
    release(tmp_path / "release")
    with pytest.raises(
        ConfigError, match=r"has gates: set model.attention.gates to .*'cbam', 'stages': \[0, 3\]"
    ):
        build_from_source(
            gated_config(gates=None),
            open_source(str(tmp_path / "release")),
            num_classes=5,
            in_chans=1,
            image_size=32,
        )


def test_a_release_that_lost_its_gates_is_an_error(tmp_path: Path) -> None:
    weights = release(tmp_path / "release").state_dict()
    kept = {name: tensor.contiguous() for name, tensor in weights.items() if not name.startswith("act1.")}
    save_file(kept, tmp_path / "release" / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has no weights act1\.1\.channel\.fc1\.weight"):
        load_release(str(tmp_path / "release"))
