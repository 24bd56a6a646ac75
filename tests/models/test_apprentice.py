"""models.apprentice, models.carrier: what is trained beside a student is not released with it."""

from __future__ import annotations

import timm
import torch
from torch import nn

from models.apprentice import Apprentice, Classroom, logits_of_all, students_of
from models.carrier import main_network, released_parts
from models.layer_order import layer_order
from models.map_hooks import Outputs


def make_student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    args = {"depths": (1, 1), "channels": (8, 16), "stem_type": "3x3", "stem_chs": 8}
    model: nn.Module = timm.create_model("nf_seresnet26", num_classes=4, in_chans=1, **args)
    return model


def test_an_apprentice_gives_its_students_logits_and_projects_in_training() -> None:
    student, images = make_student(), torch.rand(2, 1, 28, 28)
    apprentice = Apprentice(student, (1, -1), widths=[(8, 5), (16, 6)])
    with Outputs(list(apprentice.projections.named_children())) as projected:
        logits = apprentice(images)
    torch.testing.assert_close(logits, student(images), rtol=0, atol=0)
    assert [found.shape[1] for found in projected.take()] == [5, 6]
    assert torch.equal(apprentice.eval()(images), student(images))


def test_the_release_of_an_apprentice_is_its_student_under_timms_names() -> None:
    student = make_student()
    apprentice = Apprentice(student, (-1,), widths=[(16, 6)])
    ((name, (model, weights)),) = released_parts(apprentice, apprentice.state_dict()).items()
    assert name == "" and model is student is main_network(apprentice)
    assert weights.keys() == student.state_dict().keys()


def test_each_of_several_students_is_released_by_name() -> None:
    large, small = make_student(0), make_student(1)
    room = Classroom({"": Apprentice(large, (-1,), widths=[(16, 6)]), "small": small})
    parts = released_parts(room, room.state_dict())
    assert {name: model for name, (model, _) in parts.items()} == {"": large, "small": small}
    for model, weights in parts.values():
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())


def test_a_classroom_gives_the_first_students_logits_and_runs_the_others() -> None:
    first, second = make_student(0), make_student(1)
    room, images = Classroom({"": first, "b": second}), torch.rand(2, 1, 28, 28)
    assert list(students_of(room)) == ["", "b"] and students_of(first) == {"": first}
    with Outputs([("b", second)]) as seen:
        assert torch.equal(room(images), first(images))
    assert torch.equal(seen.take()[0], second(images))
    assert torch.equal(logits_of_all(room, images), torch.cat([first(images), second(images)]))


def test_layers_of_an_apprentice_are_those_of_its_student() -> None:
    student = timm.create_model("resnet10t", num_classes=3)
    inner = layer_order(student)
    order = layer_order(Apprentice(student, (-1,), widths=[(512, 6)]))
    assert order == {f"student.{name}": layer for name, layer in inner.items()}
