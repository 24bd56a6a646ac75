"""finetune.exporting.hub: the requests a push makes, against a fake of the hub's HTTP API on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from configs.base import ConfigError
from finetune.exporting.hub import parse_hub_name
from tests.support.hub_server import TOKEN, Hub, hub_server
from tests.support.releases import make_release

ROOT = Path(__file__).resolve().parents[3]


def push(run: Path, out: Path, endpoint: str, *, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(out.parent / "hf-home"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "finetune.export", str(run), str(out), "--push", "hf-hub:someone/net"]
    return subprocess.run(
        [*command, "--license", "mit"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_a_pushed_folder_is_the_export_byte_for_byte_and_timm_loads_it(tmp_path: Path) -> None:
    run = make_release(tmp_path / "run")
    with hub_server() as hub:
        done = push(run, tmp_path / "first", hub.url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"pushed: {hub.url}/someone/net/commit/" in done.stdout
        assert_is_export(hub, tmp_path / "first")
        created = hub.repositories["someone/net"]
        assert created.get("visibility") == "private" or created["private"] is True  # by version
        assert hub.messages == ["Exported by Mirada"] and "license: mit" in hub.cards[0]

        refused = push(run, tmp_path / "second", hub.url, token="hf_wrong")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "second' is written, but could not be pushed to hf-hub:someone/net" in refused.stderr
    assert "401" in refused.stderr and "set HF_TOKEN" in refused.stderr
    assert (tmp_path / "second" / "model.safetensors").is_file()

    received = tmp_path / "received"
    received.mkdir()
    for path, content in hub.files.items():
        (received / path).write_bytes(content)
    images = torch.rand(2, 1, 28, 28)
    sides = [
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        for folder in (run / "release", received)
    ]
    assert torch.equal(sides[0](images), sides[1](images))


def assert_is_export(hub: Hub, folder: Path) -> None:
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("text", ["someone/net", "hf-hub:net", "hf-hub:a/b/c", "hf-hub:../b", "hf-hub:"])
def test_other_places_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no place on the hub: write hf-hub:OWNER/NAME"):
        parse_hub_name(text)
    assert parse_hub_name("hf-hub:some-one/net_1.0") == "some-one/net_1.0"
