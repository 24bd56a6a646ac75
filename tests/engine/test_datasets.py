"""Training and validation data that do not fit are refused; data without labels are fit for learning without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.base import ConfigError
from configs.load import load_config
from data_pipeline.errors import DataError
from engine.datasets import open_datasets
from engine.results.labelled_sample import LabelledSample
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.run import build_task
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "unlabelled"
    make_shards(folder, [5, 4], num_classes=None)
    return folder


def recipe(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, "configs/smoke/pretrain_mae.yaml", overrides).config


def test_images_without_labels_are_trained_on_where_none_are_needed(unlabelled: Path) -> None:
    config = recipe(f"data.train={unlabelled}", "data.val=null")
    index, val_index = open_datasets(config, needs_labels=False)
    assert (index.num_samples, index.classes, val_index) == (9, (), None)
    model, _ = build_task(config, num_classes=len(index.classes))
    assert not [name for name in model.state_dict() if name.startswith("encoder.head")]


def test_supervised_learning_needs_labels(unlabelled: Path) -> None:
    config = recipe(f"data.train={unlabelled}", "data.val=null")
    with pytest.raises(ConfigError, match="has no labels, so there are no classes to learn"):
        open_datasets(config, needs_labels=True)


def test_features_learned_without_any_label_cannot_be_probed(unlabelled: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be probed on data\.val .* leave data\.val out"):
        open_datasets(recipe(f"data.train={unlabelled}"), needs_labels=False)


def test_validation_data_of_other_classes_are_refused(tmp_path: Path) -> None:
    make_shards(tmp_path / "other", [6], num_classes=3)
    with pytest.raises(ConfigError, match=r"3 classes.*is not that of"):
        open_datasets(recipe(f"data.val={tmp_path / 'other'}"), needs_labels=False)


def test_of_a_mixture_the_images_without_labels_are_not_probed_with(unlabelled: Path) -> None:
    config = recipe(f"data.mixture=[{{train: {unlabelled}, weight: 1 pass}}]")
    index, _ = open_datasets(config, needs_labels=False)
    assert index.num_samples == 6009
    sample = LabelledSample(index, config.data, size=100_000)
    assert sample.num_samples == 6000 and sample.labels().min() == 0


def captioned(folder: Path, *overrides: str) -> PretrainConfig:
    overrides = (f"data.train={folder}", *overrides)
    return load_config(PretrainConfig, "configs/smoke/pretrain_siglip.yaml", overrides).config


def test_where_captions_are_needed_training_data_need_no_labels_and_validation_data_name_their_own(
    tmp_path: Path,
) -> None:
    make_shards(tmp_path / "texts", [5, 4], num_classes=None, captions=str)
    index, val_index = open_datasets(captioned(tmp_path / "texts"), needs_labels=False, needs_captions=True)
    assert index.classes == () and val_index is not None and len(val_index.classes) == 10


def test_missing_captions_are_counted_before_a_run_with_their_shards(tmp_path: Path) -> None:
    make_shards(tmp_path / "texts", [5, 4, 4], captions=lambda number: "" if number in (1, 2, 6) else "text")
    message = (
        r"3 of 13 samples .* in 2 of 3 shards: test-000000.tar \(2\), test-000001.tar \(1\); data.max_bad"
    )
    with pytest.raises(DataError, match=message):
        open_datasets(captioned(tmp_path / "texts"), needs_labels=False, needs_captions=True)
    config = captioned(tmp_path / "texts", "data.max_bad_fraction=0.3")
    assert open_datasets(config, needs_labels=False, needs_captions=True)[0].num_samples == 13


def test_validation_data_without_classes_have_no_names_to_be_told_by(
    unlabelled: Path, tmp_path: Path
) -> None:
    make_shards(tmp_path / "texts", [5], captions=str)
    config = captioned(tmp_path / "texts", f"data.val={unlabelled}")
    with pytest.raises(
        ConfigError, match=r"cannot be told by the names of classes: leave it out \(data\.val=null\)"
    ):
        open_datasets(config, needs_labels=False, needs_captions=True)


def test_captioned_images_that_are_held_out_are_told_by_the_names_of_their_classes(tmp_path: Path) -> None:
    make_shards(tmp_path / "texts", [50, 40], captions=str)
    config = captioned(tmp_path / "texts", "data.val=null", "data.held_out=0.2")
    index, val_index = open_datasets(config, needs_labels=False, needs_captions=True)
    assert val_index is not None and 5 < val_index.num_samples < 35 and val_index.classes == index.classes


def test_captioned_images_without_classes_are_not_held_out_in_silence(tmp_path: Path) -> None:
    make_shards(tmp_path / "texts", [50], num_classes=None, captions=str)
    config = captioned(tmp_path / "texts", "data.val=null", "data.held_out=0.2")
    with pytest.raises(ConfigError, match=r"data\.held_out 0\.2 have no labels.* \(data\.held_out=0\)"):
        open_datasets(config, needs_labels=False, needs_captions=True)


def test_without_validation_data_a_run_is_evaluated_on_what_it_holds_out(unlabelled: Path) -> None:
    config = recipe("data.val=null", "data.held_out=0.1")
    index, val_index = open_datasets(config, needs_labels=False)
    assert val_index is not None and 500 < val_index.num_samples < 700 and val_index.classes == index.classes
    assert LabelledSample(index, config.data, size=100_000).num_samples == 6000 - val_index.num_samples
    with pytest.raises(
        ConfigError, match=r"cannot be probed on data\.held_out 0\.1: leave data\.held_out out"
    ):
        open_datasets(
            recipe(f"data.train={unlabelled}", "data.val=null", "data.held_out=0.1"), needs_labels=False
        )


def test_students_of_other_classes_than_the_data_are_refused_by_name() -> None:
    tiny = ("students.tiny={name: resnet18, num_classes: 20}", "optim.clip_grad=null")
    config = load_config(FinetuneConfig, "configs/finetune/demo_student.yaml", tiny).config
    with pytest.raises(ConfigError, match=r"^students\.tiny\.num_classes is 20, but .* has 10 classes"):
        open_datasets(config, needs_labels=True)
