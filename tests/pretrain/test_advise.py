"""`mirada advise` as a program: the embedded sample, limits that a smaller network keeps, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.base import ConfigError
from configs.load import load_config
from data_pipeline.index import open_index, write_index
from engine.planning.accelerator import find_accelerator
from engine.planning.hardware import find_hardware
from pretrain.advise import advise
from pretrain.advising.corpus_facts import find_facts
from pretrain.config import PretrainConfig

SAMPLE = "mirada://sample/train"


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert advise([SAMPLE, "--json", *map(str, arguments)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_facts_of_the_embedded_sample() -> None:
    facts = find_facts(open_index(SAMPLE))
    assert (facts.num_images, facts.num_labelled, facts.num_classes) == (6_000, 6_000, 10)
    assert (facts.shorter_side, facts.channels) == (28, 1)
    assert facts.mean[0] == pytest.approx(0.286, abs=0.02)  # of Fashion-MNIST
    assert facts.std[0] == pytest.approx(0.353, abs=0.02)


@pytest.mark.slow
def test_advice_for_the_sample_is_a_recipe_that_loads_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    found = answer(capsys, "--out", out, "--val", "mirada://sample/test", "--memory-gb", 8)
    config = load_config(PretrainConfig, out).config
    assert config.model.name == "resnet18" and config.data.image_size == 28
    assert [group.name for group in config.model.attention.gates] == ["cbam"]
    assert config.data.val == "mirada://sample/test"
    assert found["hardware"]["memory_gib"] == 8 and 0 < found["memory_gib"] < 6
    text = out.read_text()
    assert text.startswith(f"# mirada pretrain {out}\n")
    assert (
        "6,000 labelled images are under 100,000: light gates (CBAM) in a CNN" in text
        and "NOT run yet" in text
    )


@pytest.mark.slow
def test_what_does_not_fit_is_left_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tight.yaml"
    tight = answer(capsys, "--out", out, "--image-size", 224, "--memory-gb", 4, "--gpu", "t4")
    assert tight["sections"]["train"]["micro_batch"] < tight["sections"]["train"]["global_batch"]
    assert tight["sections"]["train"]["precision"] == "fp16"  # a T4 computes no bf16
    with pytest.raises(
        ConfigError, match=r"no network of ours fits:\n  resnet18: \d+\.\d ms for an image, more"
    ):
        advise([SAMPLE, "--out", str(tmp_path / "none.yaml"), "--latency-ms", "0.001"])
    with pytest.raises(ConfigError, match=r"resnet18: \d+\.\d GiB for one image at a time, more than 0.0"):
        advise([SAMPLE, "--out", str(tmp_path / "none.yaml"), "--memory-gb", "2.01"])
    assert not (tmp_path / "none.yaml").exists()


def test_mistakes_are_told_at_once_without_a_traceback(tmp_path: Path) -> None:
    taken = tmp_path / "taken.yaml"
    taken.write_text("mine")
    wrong = ["--image-size", "4", "--latency-ms", "-1", "--memory-gb", "0", "--out", str(taken)]
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.advise", SAMPLE, *wrong], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in (
        "--image-size 4: allowed is 8 pixels or more",
        "--latency-ms -1: allowed is more than 0",
        "--memory-gb 0: allowed is more than 0",
        f"--out {str(taken)!r} is there already: give another name, or --overwrite",
    ):
        assert part in done.stderr
    assert taken.read_text() == "mine"


def test_data_that_is_not_there_or_does_not_agree_is_an_error(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "none.yaml")]
    with pytest.raises(ConfigError, match=rf"no index in '{tmp_path}': '_info.json' is missing"):
        advise([str(tmp_path), *out])
    other = write_index(tmp_path / "other", name="x", split="val", classes=["cat"], shards=[], rows={})
    with pytest.raises(
        ConfigError, match=r"has 1 classes and 'mirada://sample/train' has 10, or their names differ"
    ):
        advise([SAMPLE, "--val", str(other.folder), *out])


def test_hardware_is_what_was_asked_for_or_what_is_here() -> None:
    elsewhere = find_hardware(find_accelerator("v100"))
    assert (elsewhere.device, elsewhere.name, elsewhere.precision) == ("cuda", "v100", "fp16")
    assert find_hardware(find_accelerator("h100")).precision == "bf16"
    here = find_hardware(memory_gib=3.5)
    assert here.memory_gib == 3.5 and here.num_ranks >= 1 and here.name
    assert find_hardware().memory_gib > 0.5
