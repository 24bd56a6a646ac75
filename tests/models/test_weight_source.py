"""models.weight_source: what is known about a checkpoint of each kind before its weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from configs.base import ConfigError
from models.weight_source import open_source

ARGS = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}


def network() -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = timm.create_model("resnet18", num_classes=3, **ARGS)
    return model


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_for_hf(network(), folder, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    return folder


def test_a_release_is_found_by_itself_by_its_run_and_as_timms_folder(tmp_path: Path) -> None:
    release = write(tmp_path / "run" / "release")
    for reference in (str(release), str(release.parent), f"local-dir:{release}"):
        source = open_source(reference)
        assert (source.architecture, source.label_names) == ("resnet18", ("a", "b", "c"))
        assert source.args["channels"] == [8, 8, 8, 8] and source.facts["crop_pct"] == 0.95
        expected = network().state_dict()
        found = source.read()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file_says_nothing_of_its_network(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    source = open_source(str(tmp_path / "a.pth"))
    assert (source.architecture, source.facts, source.args) == (None, {}, {})
    assert source.read().keys() == network().state_dict().keys()


def test_a_timm_name_is_described_by_timms_registry() -> None:
    source = open_source("vit_base_patch16_224.augreg_in21k")
    assert source.architecture == "vit_base_patch16_224"
    assert source.facts["mean"] == (0.5, 0.5, 0.5) and source.facts["num_classes"] == 21843


def test_a_timm_name_without_weights_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"has this architecture, but no weights for it; timm\.list_pretrained"
    ):
        open_source("vit_base_patch16_18x2_224")


def in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache as if OWNER/tiny had been downloaded, and no network."""
    commit = "0" * 40
    model = cache / "models--owner--tiny"
    write(model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_network_of_the_hub_is_read_from_where_timm_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache(tmp_path, monkeypatch)
    source = open_source("hf-hub:owner/tiny")
    assert (source.architecture, source.label_names) == ("resnet18", ("a", "b", "c"))
    assert torch.equal(source.read()["fc.weight"], network().fc.weight)


def test_what_cannot_be_fetched_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache(tmp_path, monkeypatch)
    with pytest.raises(
        ConfigError, match=r"'hf-hub:owner/none' cannot be fetched .* into a folder with its config"
    ):
        open_source("hf-hub:owner/none")
    with pytest.raises(ConfigError, match=r"'resnet50.a1_in1k' cannot be fetched"):
        open_source("resnet50.a1_in1k").read()


def test_what_is_wrong_with_a_reference_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'.*none.safetensors': no such file"):
        open_source(str(tmp_path / "none.safetensors"))
    with pytest.raises(
        ConfigError, match=r"no such folder, and no architecture .* a \.safetensors or \.pth file"
    ):
        open_source(str(tmp_path / "none"))
    folder = write(tmp_path / "release")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ConfigError, match=r"names no 'architecture': .*model\.safetensors', and set model\.name"
    ):
        open_source(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json of .* is no JSON"):
        open_source(str(folder))
