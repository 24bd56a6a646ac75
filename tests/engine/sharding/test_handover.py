"""What DeepSpeed saves is a copy on the host, whatever training does to the original before it is written."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from engine.saving.writer import FileQueue
from engine.sharding.handover import Handover, host_copy


class Scaler:
    def __init__(self) -> None:
        self.scale = 1.0


def test_a_file_holds_the_state_of_the_save_and_not_of_the_writing(tmp_path: Path) -> None:
    scaler, weights, rates = Scaler(), torch.ones(3), [{"lr": 0.1}]
    files, handover = FileQueue(), Handover()
    handover.writer = files
    handover.save(OrderedDict(scaler=scaler, nested=(weights, rates)), str(tmp_path / "new" / "state.pt"))
    scaler.scale, rates[0]["lr"] = 2.0, 0.2
    weights.zero_()
    assert not (tmp_path / "new").exists()
    files.write_all()
    read = handover.load(str(tmp_path / "new" / "state.pt"))
    assert read["scaler"].scale == 1.0
    assert torch.equal(read["nested"][0], torch.ones(3))
    assert read["nested"][1] == [{"lr": 0.1}]


def test_a_slice_does_not_drag_its_buffer_along() -> None:
    assert host_copy({"slice": torch.zeros(1000)[:10]})["slice"].untyped_storage().nbytes() == 40


def test_a_save_that_nobody_asked_for_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"'x\.pt', but nobody asked"):
        Handover().save({}, "x.pt")
