"""models.surgery: a checkpoint into another network, weight for weight as timm loads it, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from configs.base import ConfigError
from configs.training import ModelConfig
from models.build import build_model, input_spec
from models.key_report import KeyReport
from models.surgery import build_from_source
from models.weight_source import open_source

VIT = ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
)
RESNET = ("resnet18", {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]})
HYBRID = ("vit_tiny_r_s16_p8_224", {"patch_size": 1, "embed_dim": 24, "depth": 1, "num_heads": 2})
OURS = ("residual_vit", {"stem_channels": [8, 16, 24], "depth": 1, "num_heads": 2})
Network = tuple[str, dict[str, Any]]
NAMES = tuple(f"class {i}" for i in range(10))


def released(network: Network, folder: Path, *, size: int = 32, bands: int = 3) -> Path:
    """A timm folder with ten classes, as timm itself writes it; no weight is as it was begun."""
    name, args = network
    torch.manual_seed(1)
    model = build_model(
        ModelConfig(name=name, args=args), num_classes=10, in_chans=bands, image_size=size,
        mean=(0.3,) * bands, std=(0.35,) * bands,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_for_hf(model, folder, model_config={"label_names": list(NAMES)}, safe_serialization=True)
    return folder


def started(
    network: Network,
    reference: Path | str,
    *,
    size: int = 32,
    bands: int = 3,
    classes: int = 10,
    **args: Any,
) -> tuple[nn.Module, KeyReport]:
    config = ModelConfig(name=network[0], args=args)
    return build_from_source(
        config, open_source(str(reference)), num_classes=classes, in_chans=bands, image_size=size
    )


CHANGES: list[tuple[str, Network, dict[str, Any], set[str]]] = [
    ("nothing", VIT, {}, set()),
    ("image size", VIT, {"size": 48}, {"pos_embed"}),
    ("patch size", VIT, {"patch_size": 4, "size": 16}, {"patch_embed.proj.weight"}),
    ("colour to grey", VIT, {"bands": 1}, {"patch_embed.proj.weight"}),
    (
        "all at once",
        VIT,
        {"size": 24, "patch_size": 4, "bands": 1, "classes": 4},
        {"pos_embed", "patch_embed.proj.weight"},
    ),
    (
        "Swin's windows",
        SWIN,
        {"window_size": 8},
        {f"layers.0.blocks.{i}.attn.relative_position_bias_table" for i in range(2)}
        | {f"layers.1.blocks.{i}.attn.relative_position_bias_table" for i in range(2)},
    ),
    ("Swin's image size", SWIN, {"size": 64}, set()),
    ("Swin's patches", SWIN, {"patch_size": 4, "size": 64}, {"patch_embed.proj.weight"}),
    ("a hybrid's image size", HYBRID, {"size": 48}, {"pos_embed"}),
    ("our ViT's image size", OURS, {"size": 48}, {"pos_embed"}),
    ("a CNN's channels", RESNET, {"bands": 1}, {"conv1.weight"}),
    ("a CNN's image size and classes", RESNET, {"size": 64, "classes": 3}, set()),
]


@pytest.mark.parametrize(
    ("network", "change", "resized"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_weights_are_what_timm_makes_of_the_same_folder(
    network: Network, change: dict[str, Any], resized: set[str], tmp_path: Path
) -> None:
    folder = released(network, tmp_path)
    model, report = started(network, folder, **change)
    size, bands, classes = (change.get(k, d) for k, d in (("size", 32), ("bands", 3), ("classes", 10)))
    args = {key: value for key, value in change.items() if key in ("patch_size", "window_size")}
    if network is not RESNET:
        args["img_size"] = size
    expected = timm.create_model(
        f"local-dir:{folder}", pretrained=True, in_chans=bands, num_classes=classes, **args
    ).state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    fresh = [name for name in found if not torch.equal(found[name], expected[name])]
    assert set(fresh) <= set(report.reset)  # a head of other classes, drawn anew on either side
    assert bool(report.reset) == (classes != 10)
    assert set(report.resized) == resized
    assert set(report.loaded) == found.keys() - resized - set(report.reset)
    assert not (report.missing or report.unexpected or report.converted)
    assert model.eval()(torch.rand(1, bands, size, size)).shape == (1, classes)


def test_grey_to_colour_repeats_the_channel_and_keeps_its_sum(tmp_path: Path) -> None:
    folder = released(RESNET, tmp_path, bands=1)
    grey, _ = started(RESNET, folder, bands=1)
    colour, report = started(RESNET, folder, bands=3)
    torch.testing.assert_close(colour.conv1.weight, grey.conv1.weight.expand(-1, 3, -1, -1) / 3)
    assert report.resized == {"conv1.weight": "(64, 1, 7, 7) -> (64, 3, 7, 7)"}


def test_without_mean_and_std_the_checkpoints_own_are_kept_and_its_arguments_in_any_case(
    tmp_path: Path,
) -> None:
    model, _ = started(VIT, released(VIT, tmp_path))
    assert input_spec(model) == (3, 32, (0.3,) * 3, (0.35,) * 3)
    assert len(model.blocks) == 2


def test_another_pooling_begins_its_own_norm_and_says_so(tmp_path: Path) -> None:
    folder = released(VIT, tmp_path)
    _, pooled = started(VIT, folder, global_pool="avg")
    assert pooled.missing == ("fc_norm.bias", "fc_norm.weight")
    assert set(pooled.unexpected) == {"norm.bias", "norm.weight"}
    model, kept = started(VIT, folder, global_pool="avg", fc_norm=False)
    assert not (kept.missing or kept.unexpected) and model.global_pool == "avg"
    _, doubled = started(RESNET, released(RESNET, tmp_path / "cnn"), global_pool="catavgmax")
    assert doubled.reset["fc.weight"] == "it reads 16 features in the checkpoint, 32 here"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_bare_file_gives_what_its_release_gives(suffix: str, tmp_path: Path) -> None:
    expected, _ = started(VIT, released(VIT, tmp_path), size=48)
    weights = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).state_dict()
    path = tmp_path / f"bare{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save({"model": weights}, path)
    model, report = started(VIT, path, size=48, **VIT[1])
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert list(report.resized) == ["pos_embed"] and report.reference == str(path)


def test_names_of_another_library_are_converted_as_timm_does(tmp_path: Path) -> None:
    released(VIT, tmp_path)
    weights = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).state_dict()
    as_in_clip = {f"visual.trunk.{name}": value for name, value in weights.items() if "head" not in name}
    torch.save({**as_in_clip, "logit_scale": torch.ones(())}, tmp_path / "clip.pth")
    model, report = started(VIT, tmp_path / "clip.pth", **VIT[1])
    assert set(report.converted) == {name for name in weights if "head" not in name}
    assert report.reset == dict.fromkeys(("head.weight", "head.bias"), "the checkpoint has none")
    assert report.unexpected == ("logit_scale",)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])


def test_a_head_of_other_classes_is_reset_and_the_reason_is_told(tmp_path: Path) -> None:
    source = open_source(str(released(RESNET, tmp_path)))
    config = ModelConfig(name="resnet18")

    def reason(names: tuple[str, ...]) -> str | None:
        _, report = build_from_source(
            config, source, num_classes=len(names), class_names=names, in_chans=3, image_size=32
        )
        assert ("head reset (fc.weight, fc.bias)" in report.summary()) == bool(report.reset)
        return report.reset.get("fc.weight")

    assert reason(NAMES) is None
    assert reason(NAMES[:7]) == "10 classes in the checkpoint, 7 here"
    assert reason((*NAMES[:9], "bag")) == "other classes: number 9 is 'class 9' in the checkpoint, 'bag' here"


def test_the_summary_counts_and_names_what_became_of_the_weights(tmp_path: Path) -> None:
    weights = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **VIT[1]).state_dict()
    del weights["blocks.0.norm1.weight"]
    torch.save({**weights, "extra": torch.ones(2)}, tmp_path / "a.pth")
    _, report = started(VIT, tmp_path / "a.pth", size=48, classes=3, **VIT[1])
    assert report.summary() == (
        f"weights of {tmp_path / 'a.pth'}: 28 loaded, 1 resized, 2 reset, 1 missing, 1 unexpected; "
        "resized pos_embed (1, 17, 24) -> (1, 37, 24); "
        "head reset (head.weight, head.bias): 10 classes in the checkpoint, 3 here; "
        "missing blocks.0.norm1.weight; unexpected extra"
    )
    assert report.as_dict()["resized"] == {"pos_embed": "(1, 17, 24) -> (1, 37, 24)"}


def test_a_checkpoint_of_which_nothing_fits_is_an_error(tmp_path: Path) -> None:
    torch.save({"encoder.layers.0.weight": torch.ones(3), "b": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(
        ConfigError, match=r"nothing was loaded: none of the 2 weights .* of 'resnet18'; it has "
    ):
        started(RESNET, tmp_path / "a.pth", **RESNET[1])


def test_weights_of_other_shapes_are_an_error_that_names_them(tmp_path: Path) -> None:
    weights = timm.create_model("resnet18").state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"does not fit 'resnet18': layer1.0.conv1.weight is \(64, 64, 3, 3\) there and \(8, 64, 3, 3\) here, ",
    ):
        started(RESNET, tmp_path / "a.safetensors", **RESNET[1])
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, **{**SWIN[1], "depths": (2, 4)})
    save_file(swin.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit 'swin_tiny_patch4_window7_224' \(AttributeError"):
        started(SWIN, tmp_path / "b.safetensors", **SWIN[1])


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.name is 'resnet18', but checkpoint .* holds a 'vit_tiny"):
        started(RESNET, released(VIT, tmp_path))
