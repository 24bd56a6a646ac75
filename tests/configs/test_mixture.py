from __future__ import annotations

import pytest
from pydantic import ValidationError

from configs.data import DataConfig, Weight


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("30 %", 30, "%"), ("0.5%", 0.5, "%"), ("2 passes", 2, "passes"), ("1 pass", 1, "passes")],
)
def test_a_weight_is_a_share_or_passes_and_is_written_as_it_is_read(
    text: str, amount: float, unit: str
) -> None:
    weight = Weight.parse(text)
    assert (weight.amount, weight.unit) == (amount, unit)
    assert Weight.parse(str(weight)) == weight


@pytest.mark.parametrize("text", ["0 %", "100 %", "0 passes", "-1 %", "0.3", 0.3, "30 percent", "%", None])
def test_other_weights_are_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="write a weight as '30 %'"):
        Weight.parse(text)


def test_shares_that_leave_nothing_for_the_first_corpus_are_refused() -> None:
    mixture = [{"train": "b", "weight": "60 %"}, {"train": "c", "weight": "40 %"}]
    with pytest.raises(
        ValidationError, match="shares in 'mixture' are 100 %, which leaves nothing for 'train'"
    ):
        DataConfig.model_validate({"train": "a", "mixture": mixture})
    mixture[1]["weight"] = "3 passes"
    data = DataConfig.model_validate({"train": "a", "mixture": mixture})
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data
