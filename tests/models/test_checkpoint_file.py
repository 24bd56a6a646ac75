"""models.checkpoint_file: weights of any common file, by a stated rule, and never the code in it."""

from __future__ import annotations

import argparse
import os
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from configs.base import ConfigError
from models.checkpoint_file import WRAPPERS, conversion_command, is_weights_file, read_weights

WEIGHTS = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(2)}
OTHER = {"fc.weight": torch.zeros(2, 3)}


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._path),)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_safetensors_and_pth_give_the_same_weights(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert same(read_weights(tmp_path / "a.safetensors"))
    for name in ("a.pth", "a.pt", "a.pth.tar"):
        assert same(read_weights(saved(tmp_path / name, WEIGHTS)))
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "old.pth"))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_training_programs_put_around_weights_is_taken_off(wrapper: str, tmp_path: Path) -> None:
    inner = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    content = {"epoch": 3, "arch": "resnet18", wrapper: inner, "optimizer": {"lr": 0.1}}
    assert same(read_weights(saved(tmp_path / "a.pth", content)))


def test_averaged_weights_come_before_others_and_prefixes_of_compiled_models_go(tmp_path: Path) -> None:
    averaged = {f"_orig_mod.module.{name}": tensor for name, tensor in WEIGHTS.items()}
    content = {"model": OTHER, "state_dict": OTHER, "state_dict_ema": averaged}
    assert same(read_weights(saved(tmp_path / "a.pth", content)))
    assert same(read_weights(saved(tmp_path / "b.pth", {"state_dict_ema": None, "state_dict": WEIGHTS})))


def test_code_in_a_file_is_not_run_and_the_error_says_how_to_convert_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "its weights.pth", {"state_dict": WEIGHTS, "hook": Trap(tmp_path / "sprung")})
    with pytest.raises(
        ConfigError, match=r"holds a Python object \((posix|os)\.mkdir\).* could run code"
    ) as e:
        read_weights(path)
    assert not (tmp_path / "sprung").exists()
    assert str(e.value).endswith(conversion_command(path))


def test_the_command_in_the_error_makes_a_file_that_can_be_read(tmp_path: Path) -> None:
    shared = torch.ones(3)
    content = {"args": argparse.Namespace(lr=0.1), "state_dict": {"a": shared, "b": shared, "step": 3}}
    path = saved(tmp_path / "it's.pth", content)
    with pytest.raises(ConfigError, match=r"a Python object \(argparse\.Namespace\)"):
        read_weights(path)
    python, option, code = shlex.split(conversion_command(path))
    assert (python, option) == ("python", "-c")
    exec(code, {})
    assert same(read_weights(tmp_path / "it's.safetensors"), {"a": shared, "b": shared})


def _linear() -> torch.nn.Module:
    model = torch.nn.Linear(3, 2)
    model.load_state_dict({"weight": WEIGHTS["fc.weight"], "bias": WEIGHTS["fc.bias"]})
    return model


@pytest.mark.parametrize(
    "content",
    [
        _linear(),
        {"epoch": 3, "model": _linear()},
        {"state_dict_ema": None, "state_dict": _linear().state_dict(), "args": argparse.Namespace(lr=0.1)},
        {"model_ema": None, "model": _linear(), "args": argparse.Namespace(lr=0.1)},
    ],
    ids=["module", "wrapped module", "no average", "no average of a module"],
)
def test_the_command_converts_whatever_training_programs_save(content: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", content)
    with pytest.raises(ConfigError, match="could run code"):
        read_weights(path)
    exec(shlex.split(conversion_command(path))[2], {})
    expected = {"weight": WEIGHTS["fc.weight"], "bias": WEIGHTS["fc.bias"]}
    assert same(read_weights(tmp_path / "a.safetensors"), expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "'.*a.safetensors' is damaged, or no safetensors file"),
        ("a.safetensors", b"\xff" * 64, "is damaged, or no safetensors file"),
        ("a.pth", b"", "is damaged, or no file of PyTorch's"),
        ("a.pth", b"PK\x03\x04" + b"\0" * 64, "is damaged, or no file of PyTorch's"),
        ("a.pth", b"hello there, not a checkpoint", "is damaged, or no file of PyTorch's"),
        ("a.pth", pickle.dumps({"a": 1}), "holds something that is neither a number nor a name"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_file_that_was_cut_short_is_damaged(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(WEIGHTS, path) if name.endswith("safetensors") else torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="is damaged"):
        read_weights(path)


def test_a_file_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    content = {"student": WEIGHTS, "teacher": OTHER, "epoch": 3}
    with pytest.raises(
        ConfigError, match=r"holds no weights by name.*there is 'student', 'teacher', 'epoch'"
    ):
        read_weights(saved(tmp_path / "a.pth", content))
    with pytest.raises(ConfigError, match="holds no weights"):
        read_weights(saved(tmp_path / "b.pth", torch.ones(3)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint '.*none.pth': no such file"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("reference", "is_file"),
    [("a/b.safetensors", True), ("b.pth.tar", True), ("runs/x", False), ("resnet50.a1_in1k", False)],
)
def test_files_are_told_by_how_they_end(reference: str, is_file: bool) -> None:
    assert is_weights_file(reference) is is_file
