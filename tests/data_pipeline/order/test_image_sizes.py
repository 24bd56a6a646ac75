"""Progressive image size: a function of the step, with boundaries that a config gives in several units."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.base import ConfigError, Duration
from configs.data import DataConfig, Moment
from data_pipeline.order.image_sizes import ImageSizes

RUN = Duration(10, "epochs")
SCALE = {"steps_per_epoch": 50, "global_batch": 8}


def progressive(*phases: tuple[str, int], image_size: int = 224) -> DataConfig:
    listed = [{"until": until, "image_size": size} for until, size in phases]
    return DataConfig.model_validate({"train": "x", "image_size": image_size, "progressive": listed})


def sizes_of(data: DataConfig, duration: Duration = RUN) -> ImageSizes:
    return ImageSizes.of(data, duration, **SCALE)


def test_phases_end_where_the_config_says_in_percent_epochs_steps_and_images() -> None:
    data = progressive(("10 %", 96), ("2 epochs", 128), ("200 steps", 160), ("2.4k images", 192))
    sizes = sizes_of(data)
    assert data.image_sizes == (96, 128, 160, 192, 224)
    steps = [0, 49, 50, 99, 100, 199, 200, 299, 300, 499, 10_000]
    assert [sizes.at(step) for step in steps] == [96, 96, 128, 128, 160, 160, 192, 192, 224, 224, 224]


def test_without_phases_all_images_have_one_size_and_no_duration_is_needed() -> None:
    sizes = ImageSizes.of(DataConfig(train="x", image_size=64), None, **SCALE)
    assert {sizes.at(step) for step in range(1000)} == {64}
    with pytest.raises(ValueError, match=r"data\.progressive needs the duration"):
        ImageSizes.of(progressive(("10 %", 96)), None, **SCALE)


@settings(deadline=None)
@given(
    shares=st.lists(st.integers(1, 499), min_size=1, max_size=6, unique=True).map(sorted),
    step=st.integers(0, 499),
)
def test_the_size_is_that_of_the_first_phase_that_has_not_ended(shares: list[int], step: int) -> None:
    sizes = sizes_of(progressive(*((f"{share} steps", 8 + share) for share in shares), image_size=1000))
    assert sizes.at(step) == next((8 + share for share in shares if step < share), 1000)


@pytest.mark.parametrize(
    "phases",
    [
        (("0.01 %", 96),),
        (("60 %", 96), ("40 %", 128)),
        (("100 steps", 96), ("2 epochs", 128)),
        (("10 epochs", 96),),
        (("120 %", 96),),
    ],
)
def test_a_phase_without_a_step_is_refused(phases: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.progressive: phases end at .* of a run of 500 steps \('10 epochs'\)"
    ):
        sizes_of(progressive(*phases))


@pytest.mark.parametrize("text", ["40", "%", "-3 %", "a while", 0.4])
def test_what_is_no_moment_of_a_run_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(
        ValidationError, match="write a moment of the run as '40 %', '30 epochs' or '10k steps'"
    ):
        DataConfig.model_validate({"train": "x", "progressive": [{"until": text, "image_size": 96}]})


@pytest.mark.parametrize("text", ["40 %", "12.5 %", "30 epochs", "10000 steps"])
def test_a_moment_is_written_as_it_is_read(text: str) -> None:
    assert str(Moment.parse(text)) == text
    assert Moment.parse(str(Moment.parse(text))) == Moment.parse(text)
