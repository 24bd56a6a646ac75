"""configs.attention: what a recipe may say of attention, and how it is told what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.attention import AttentionConfig, SupernetConfig, choice_name
from configs.base import ConfigError
from configs.load import load_config, packaged_root
from pretrain.config import PretrainConfig

RECIPE = "configs/smoke/pretrain_vit.yaml"
SEARCH = "{choices: [none, {name: se}]}"
SYSTEMS = sorted((packaged_root() / "configs" / "pretrain" / "systems").glob("*.yaml"))


def test_without_a_word_about_attention_nothing_but_the_kernel_is_chosen() -> None:
    attention = load_config(PretrainConfig, RECIPE).config.model.attention
    assert attention.model_dump(exclude_defaults=True) == {}
    assert attention.kernel == "auto"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model.attention.gates.name=sse"],
            r"model.attention.gates.name: 'sse' is not allowed: input should be 'lrn', 'se', .*'shifted_window'",
        ),
        (
            ["model.attention.kernel=flsh"],
            r"kernel: 'flsh' is not allowed: input should be 'auto', 'tuned', 'flash'",
        ),
        (
            ["model.attention.gates={name: se, stages: [-1]}"],
            r"stages.* input should be greater than or equal to 0",
        ),
        (
            ["model.attention.gates=[{name: se, stages: [1, 2]}, {name: sse, stages: [3]}]"],
            r"model.attention.gates.1.name: 'sse' is not allowed",
        ),
        (
            ["model.attention.gates=[{name: se, stages: [1, 2]}, {name: eca, stages: [3, 2]}]"],
            r"gates stand twice in stage 2: give each group its own",
        ),
        (["model.attention.gates=[{name: se}, {name: eca}]"], r"gates stand twice in stage all"),
        (
            ["model.attention.gates={name: lrn, stages: [0, 1]}", f"model.attention.search={SEARCH}"],
            r"gates and search both stand in stage 1: a stage has gates of one kind",
        ),
        (["model.attention.search={choices: [{name: se}]}"], r"search.choices.* at least 2 items"),
        (
            ["model.attention.search={choices: [none, {name: se}, none]}"],
            r"choices lists none more than once",
        ),
        (["model.attention.search={choices: [none, {name: sse}]}"], r"choices.1.name: 'sse' is not allowed"),
        (["model.attention.search={choices: [none, {nmae: se}]}"], r"nmae: no such key; did you mean 'name'"),
        (
            [f"model.attention.search={SEARCH}", "model.attention.progressive={over: 3 epochs}"],
            r"search and progressive both say which layers are on at a step",
        ),
        (
            [f"model.attention.search={SEARCH}", "model.attention.regularize=[{name: gate_l1, weight: 1}]"],
            r"search and regularize: at a step without attention there is nothing to look at",
        ),
        ([f"model.attention.search={SEARCH}", "train.compile=true"], r"would be compiled anew"),
        (
            ["model.attention.progressive={over: 3 epochs, fade: 4 epochs}"],
            r"\(fade: 4 epochs\) cannot take longer",
        ),
        (["model.attention.progresive={over: 3 epochs}"], r"did you mean 'progressive'"),
        (
            ["model.attention.regularize=[{name: entropy, weight: 1}, {name: entropy, weight: 2}]"],
            r"regularize lists entropy more than once",
        ),
        (["model.attention.regularize=[{name: entropy, weight: 0}]"], r"weight.* greater than 0"),
        (
            ["model.attention.regularize=[{name: uniform, weight: 1, floor: 0.5}]"],
            r"uniform has none, take it out",
        ),
        (
            ["model.attention.regularize=[{name: gate_l1, weight: 1, queries: 5}]"],
            r"gate_l1 has none, take it out",
        ),
        (
            [
                "model.attention.regularize=[{name: uniform, weight: 1}]",
                "model.attention.two_stage={window: 3}",
            ],
            r"regularize uniform look at rows over all tokens, and with two_stage there are none",
        ),
        (["model.attention.dynamic={}"], r"dynamic.threshold: .*missing"),
        (["model.attention.dynamic.threshold=1.5"], r"threshold.* less than 1"),
        (
            [
                "model.attention.dynamic={threshold: 0.9}",
                "model.attention.two_stage={window: 3}",
                "model.attention.kernel=flash",
                "model.attention.regularize=[{name: gate_l1, weight: 1}]",
            ],
            r"dynamic does not go with two_stage, whose .*; nor with kernel flash, which .*: leave one of them out",
        ),
        (
            [
                "model.attention.dynamic={threshold: 0.9}",
                "model.attention.regularize=[{name: uniform, weight: 1}]",
            ],
            r"dynamic does not go with regularize uniform, which looks at rows over all tokens",
        ),
        (
            [
                "model.attention.regularize=[{name: uniform, weight: 1}]",
                "model.attention.progressive={over: 3 epochs, start: 0}",
            ],
            r"regularize needs a layer to look at from the beginning: set progressive.start to 1",
        ),
    ],
)
def test_what_cannot_be_is_told(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(PretrainConfig, RECIPE, overrides)


def test_gates_are_one_group_or_several_and_written_as_they_were() -> None:
    one = load_config(PretrainConfig, RECIPE, ["model.attention.gates={name: se, reduction: 4}"]).config
    assert [str(group) for group in one.model.attention.gates] == ["se reduction 4"]
    assert one.model.attention.model_dump(exclude_defaults=True)["gates"] == {"name": "se", "reduction": 4.0}
    groups = "[{name: lrn, stages: [0]}, {name: se, stages: [1]}]"
    two = load_config(PretrainConfig, RECIPE, [f"model.attention.gates={groups}"]).config
    assert [group.stages for group in two.model.attention.gates] == [(0,), (1,)]
    none = load_config(PretrainConfig, RECIPE).config
    assert none.model.attention.model_dump()["gates"] is None
    for config in (one, two, none):
        assert PretrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_gates_of_a_path_are_the_choices_of_its_stages() -> None:
    search = SupernetConfig.model_validate(
        {"choices": ["none", {"name": "se", "reduction": 4}, {"name": "eca"}]}
    )
    assert [choice_name(choice) for choice in search.choices] == ["none", "se reduction 4", "eca"]
    assert AttentionConfig(gates=search.gates((1, 0, 2), stages=(1, 2, 4))).model_dump(
        mode="json", exclude_defaults=True
    ) == {"gates": [{"name": "se", "reduction": 4.0, "stages": [1]}, {"name": "eca", "stages": [4]}]}


def test_all_mistakes_are_told_at_once() -> None:
    overrides = [
        "model.attention.gates.name=sse",
        "model.attention.kernel=x",
        "model.attention.progressive.over=3",
    ]
    with pytest.raises(ConfigError, match="3 mistakes"):
        load_config(PretrainConfig, RECIPE, overrides)


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_each_systems_recipe_stands_with_its_command_and_result(path: Path) -> None:
    config = load_config(PretrainConfig, path).config
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert head[0] == f"# mirada pretrain configs/pretrain/systems/{path.name}"
    assert any("top-1" in line or "not run" in line for line in head[1:])
    assert config.data.train == "mirada://sample/train"


def test_there_is_a_recipe_for_every_system() -> None:
    names = {path.stem for path in SYSTEMS}
    assert names >= {"lrn", "resnet", "se", "cbam", "eca", "efficientnet_se", "vit", "swin"}
    assert names >= {"two_stage", "dynamic", "progressive", "regularized", "float8"}
