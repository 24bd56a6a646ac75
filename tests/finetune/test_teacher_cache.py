"""finetune.teacher_cache: the losses of the teacher itself, and every cache of something else refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.base import ConfigError
from configs.exit_code import run_main
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.joined import open_training
from data_pipeline.loader import ShardLoader
from engine.objective import Loss
from finetune.config import FinetuneConfig
from finetune.distill import DistillObjective
from finetune.ensemble import as_one, load_teachers
from finetune.learner import with_projections
from finetune.plan import build as build_plan
from finetune.teacher import Observer, load_teacher
from finetune.teacher_cache import open_teacher_cache
from models.apprentice import Apprentice
from models.build import build_model
from tests.support.loading import take
from tests.support.taught import LENGTHS, STATS, configure, make_corpus, make_release, write_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and its whole answers about two epochs."""
    folder = tmp_path_factory.mktemp("cached")
    make_corpus(folder / "data")
    make_release(folder / "teacher")
    write_cache(made(folder), folder / "cache", grid=99)
    return folder


def made(folder: Path, **changes: Any) -> FinetuneConfig:
    return configure(folder / "data", folder / "teacher", **changes)


def cached(folder: Path, **changes: Any) -> FinetuneConfig:
    return made(folder, **{"teacher__cache": str(folder / "cache"), **changes})


def refusal(config: FinetuneConfig) -> str:
    with pytest.raises(ConfigError) as error:
        open_teacher_cache(config, open_training(config.data))
    return str(error.value)


def losses(config: FinetuneConfig, teacher: Observer, loader: ShardLoader, num_steps: int) -> list[Loss]:
    assert config.teacher is not None
    torch.manual_seed(0)
    student = build_model(config.model, num_classes=10, in_chans=1, image_size=28)
    student = fixed(with_projections(student, config, teacher))
    objective = DistillObjective(student, **STATS, teacher=teacher, losses=config.teacher)
    return [objective(student, batch) for batch in take(loader, num_steps)]


def fixed(student: nn.Module) -> nn.Module:
    """As in training, where projections run, but with the statistics of evaluation."""
    for module in student.modules():
        module.training = isinstance(module, Apprentice)
    return student


def loader_of(config: FinetuneConfig, index: ShardIndex, **more: int) -> ShardLoader:
    train = config.train
    return ShardLoader(index, config.data, global_batch=train.global_batch, seed=train.seed, **more)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"teacher__ensemble": True},
        {"teacher__attention": {"student_stages": "matched", "teacher_layers": [0, 1]}},
        {"teacher__logits": {"loss": "dist"}, "teacher__attention": {"distance": "kl", "weight": 1.0}},
        {"teacher__features": {"weight": 1.0, "teacher_layers": [0, -1], "student_stages": "matched"}},
    ],
    ids=["one", "ensemble", "matched", "other losses", "features"],
)
def test_losses_are_those_of_the_live_teacher_to_the_precision_of_float16(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    if "teacher__ensemble" in change:
        change = {"teacher__ensemble": [str(make_release(tmp_path / "other", seed=1))]}
    out = write_cache(made(folder, **change), tmp_path / "cache", grid=99)
    config, index = made(folder, teacher__cache=str(out), **change), open_index(str(folder / "data"))
    replay = open_teacher_cache(config, index)
    loader = loader_of(config, index)
    loader.read_beside(replay.sidecar)
    read, names = losses(config, replay, loader, 8), set(config.loss_weights)
    teacher = as_one(load_teachers(config, class_names=index.classes, device="cpu"))
    assert teacher is not None
    live = losses(config, teacher, loader_of(config, index), 8)
    for ours, theirs in zip(read, live, strict=True):
        assert ours.parts["task"] == theirs.parts["task"]
        assert theirs.parts["logits"] > 0.01 and theirs.parts["attention"] > 1e-4
        assert set(ours.parts) == set(theirs.parts) == names
        for name in names - {"task"}:
            torch.testing.assert_close(ours.parts[name], theirs.parts[name], rtol=2e-3, atol=1e-6)
        torch.testing.assert_close(ours.total, theirs.total, rtol=2e-3, atol=1e-6)


def test_two_ranks_with_workers_after_a_resume_hear_what_the_teacher_says_of_their_crops(
    folder: Path,
) -> None:
    """And with labels for a tenth, in other batches and another order."""
    other = {"data__label_fraction": 0.1, "data__streams": 2, "train__global_batch": 4}
    index = open_index(str(folder / "data"))
    teacher = load_teacher(str(folder / "teacher"), num_classes=10, attention_layers=(-1,))
    for rank, workers in enumerate((0, 2)):
        config = cached(folder, data__workers=workers, **other)
        loader = loader_of(config, index, rank=rank, world_size=2)
        replay = open_teacher_cache(config, index)
        loader.read_beside(replay.sidecar)
        loader.load_state_dict({"version": 1, "epoch": 0, "samples": 20})
        for batch in take(loader, 6):  # into the second epoch
            read, live = replay.observe(batch), teacher.observe(batch)
            torch.testing.assert_close(read.logits, live.logits, rtol=1e-3, atol=5e-3)
            torch.testing.assert_close(read.attention[0], live.attention[0], rtol=2e-3, atol=1e-5)
        assert set(batch.epochs.tolist()) == {1}


def test_a_longer_run_repeats_variations_or_is_refused(folder: Path) -> None:
    said = refusal(cached(folder, train__duration="5 epochs"))
    assert "it holds 2 passes over the data, and this run goes through 5" in said
    assert "data.augment.passes=2" in said and "add passes by mirada teach" in said
    config, index = (
        cached(folder, train__duration="5 epochs", data__augment__passes=2),
        open_index(str(folder / "data")),
    )
    replay = open_teacher_cache(config, index)
    loader = loader_of(config, index)
    loader.read_beside(replay.sidecar)
    teacher = load_teacher(str(folder / "teacher"), num_classes=10, attention_layers=(-1,))
    for batch in take(loader, 20)[16:]:
        assert set(batch.epochs.tolist()) == {4}
        torch.testing.assert_close(
            replay.observe(batch).logits, teacher.observe(batch).logits, rtol=1e-3, atol=5e-3
        )


def test_features_that_were_not_kept_are_refused_with_those_that_were(folder: Path) -> None:
    said = refusal(cached(folder, teacher__features={"teacher_layers": [-1]}))
    assert (
        "it has no features of the teacher's layers -1 (it has: none); set teacher.features.teacher_layers"
        in said
    )


def test_another_teacher_is_refused_and_a_copy_of_the_same_is_not(folder: Path, tmp_path: Path) -> None:
    index = open_index(str(folder / "data"))
    shutil.copytree(folder / "teacher", tmp_path / "copy")
    open_teacher_cache(cached(folder, teacher__checkpoint=str(tmp_path / "copy")), index)
    make_release(tmp_path / "other", seed=1)
    said = refusal(cached(folder, teacher__checkpoint=str(tmp_path / "other")))
    assert f"it was taught by '{folder}/teacher' (weights " in said
    assert f"this recipe's teacher is '{tmp_path}/other' (weights " in said
    assert "name the teacher it was taught by, or teach anew into another folder" in said


def test_other_images_are_refused(folder: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "data", [13, 8, 10])
    said = refusal(cached(folder, data__train=str(tmp_path / "data")))
    assert "it is about other images: its data has the digest" in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train__seed": 3}, "train.seed is 0 there and 3 here"),
        ({"data__augment__flip": False}, "data.augment.flip is True there and False here"),
        ({"data__augment__pad": 3}, "data.augment.pad is 2 there and 3 here"),
        ({"data__image_size": 32}, "data.image_size is 28 there and 32 here"),
        (
            {"data__interpolation": "bicubic"},
            "data.interpolation is 'bilinear' there and 'bicubic' here",
        ),
        ({"data__decode": "exact"}, "data.decode is 'fast' there and 'exact' here"),
        ({"data__mean": [0.4]}, "data.mean is [0.5] there and [0.4] here"),
        (
            {"data__augment__randaugment": {"layers": 1}},
            "data.augment.randaugment.layers is None there and 1 here",
        ),
    ],
)
def test_other_crops_are_refused_by_the_setting_that_makes_them_others(
    folder: Path, change: dict[str, Any], named: str
) -> None:
    said = refusal(cached(folder, **change))
    assert "it is about other crops: " in said and named in said


@pytest.mark.parametrize(
    "change",
    [
        {"data__std": [0.3]},
        {"data__workers": 3},
        {"data__eval_crop": 0.9},
        {"data__label_fraction": 0.01},
        {"data__label_fraction": 0.5, "data__unlabelled": "drop", "train__global_batch": 2},
        {"data__shuffle_window": 2},
        {"data__augment__views": [{"size": 16, "scale": [0.1, 0.5]}]},
        {"train__global_batch": 4},
        {"optim__lr": 0.5},
        {"model__name": "resnet10t", "model__args": {}},
        {"teacher__logits": None},
        {"teacher__attention": None},
    ],
)
def test_what_changes_no_crop_changes_nothing(folder: Path, change: dict[str, Any]) -> None:
    open_teacher_cache(cached(folder, **change), open_index(str(folder / "data")))


def test_all_that_is_wrong_is_said_at_once(folder: Path, tmp_path: Path) -> None:
    make_release(tmp_path / "other", seed=1)
    attention = {"teacher_layers": [0], "student_stages": [-2]}
    said = refusal(
        cached(
            folder, teacher__checkpoint=str(tmp_path / "other"), train__seed=9, teacher__attention=attention
        )
    )
    assert [line.split(": ", 2)[1].split(" ")[:3] for line in said.splitlines()] == [
        ["it", "was", "taught"],
        ["it", "is", "about"],
        ["it", "has", "no"],
    ]


def test_a_map_that_was_not_kept_is_refused_with_those_there_are(folder: Path) -> None:
    said = refusal(cached(folder, teacher__attention={"teacher_layers": [0], "student_stages": [-2]}))
    assert "it has no maps of the teacher's layers 0 (it has: -1)" in said


def test_more_copies_than_were_taught_are_refused(folder: Path) -> None:
    assert "it has 1 copies of each image, and data.repeats is 3" in refusal(cached(folder, data__repeats=3))


def test_an_unfinished_cache_says_how_much_is_missing_and_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(folder / "cache", out)
    content = json.loads((out / "answers.json").read_text())
    (out / "answers.json").write_text(json.dumps({**content, "taught": None}))
    (out / "pass-0001" / "000002.npy").unlink()
    said = refusal(cached(folder, teacher__cache=str(out)))
    assert f"it is not finished: 1 of 6 files are missing; go on with: {content['command']}" in said


def test_a_cache_that_grows_can_be_used_as_far_as_it_was_finished(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(folder / "cache", out)
    content = json.loads((out / "answers.json").read_text())
    (out / "answers.json").write_text(json.dumps({**content, "wanted": {"passes": [9], "copies": 1}}))
    open_teacher_cache(cached(folder, teacher__cache=str(out)), open_index(str(folder / "data")))
    said = refusal(cached(folder, teacher__cache=str(out), train__duration="9 epochs"))
    assert "it is not finished: 21 of 27 files are missing" in said


def test_no_cache_at_all_and_one_without_sense_are_messages(folder: Path, tmp_path: Path) -> None:
    said = refusal(cached(folder, teacher__cache=str(tmp_path)))
    assert f"no answers in '{tmp_path}'; write them with: mirada teach RECIPE --out {tmp_path}" in said
    (tmp_path / "answers.json").write_text('{"version": 1, "teach')
    said = refusal(cached(folder, teacher__cache=str(tmp_path)))
    assert "answers.json' cannot be read" in said and "write it again with mirada teach" in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data__augment__mixup": 0.8}, "what a crop is mixed with depends on the batch"),
        (
            {"data__progressive": [{"until": "40 %", "image_size": 14}]},
            "how large a crop is depends on the step",
        ),
        ({"teacher__attention": {"heads": "matched"}}, "maps are kept as means over heads"),
    ],
)
def test_what_depends_on_the_batch_or_the_step_or_is_too_much_is_refused(
    folder: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=r"teacher.cache cannot be used with") as error:
        cached(folder, **change)
    assert reason in str(error.value)


def test_batches_without_records_are_a_mistake_of_the_program(folder: Path) -> None:
    config, index = cached(folder), open_index(str(folder / "data"))
    (batch,) = take(loader_of(config, index), 1)
    with pytest.raises(ValueError, match="the batch comes without records"):
        open_teacher_cache(config, index).observe(batch)


def test_a_program_that_is_given_another_cache_ends_with_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, index = cached(folder, train__seed=5), open_index(str(folder / "data"))
    with pytest.raises(SystemExit) as end:
        run_main(lambda: open_teacher_cache(config, index) and None)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(
        f"error: teacher.cache '{folder}/cache': it is about other crops: train.seed is 0 there and 5 here"
    )


@pytest.mark.parametrize(
    ("change", "num_frozen"), [({}, 0), ({"teacher__overlap": {}, "data__held_out": 0.2}, 1)]
)
def test_the_network_is_loaded_for_the_overlap_of_evaluations_alone(
    folder: Path, change: dict[str, Any], num_frozen: int
) -> None:
    """And its memory is planned for."""
    config = cached(folder, **change)
    assert len(build_plan(config, open_index(str(folder / "data"))).frozen) == num_frozen


def test_a_run_that_left_batches_out_is_told_how_to_teach_the_pass_it_then_goes_into(
    folder: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(folder / "cache", tmp_path / "cache")
    config, index = cached(folder, teacher__cache=str(cache)), open_index(str(folder / "data"))
    with pytest.raises(DataError, match=r"pass-0002/00000\d\.npy' is missing: .* after a rollback") as error:
        _read_beyond(config, index)
    command = str(error.value).split("\n")[0].partition("write that too with: ")[2]
    assert command.endswith("--epochs 3")
    write_cache(made(folder), cache, epochs=3, grid=99)
    _read_beyond(config, index)


def _read_beyond(config: FinetuneConfig, index: ShardIndex) -> None:
    """A batch more than two epochs have."""
    loader = loader_of(config, index)
    loader.read_beside(open_teacher_cache(config, index).sidecar)
    take(loader, 2 * (sum(LENGTHS) // 8) + 1)
