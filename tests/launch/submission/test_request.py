"""One command line names settings of the recipe and of the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.base import ConfigError
from launch.submission.request import load_cluster, read_request, split_overrides

RECIPE = "configs/smoke/pretrain_vit.yaml"


def test_each_setting_goes_where_its_key_is_known() -> None:
    words = [
        "optim.lr=1",
        "nodes=4",
        "cluster.time=2:00:00",
        "requeue.budget=3",
        "train.seed=1",
        "partition=a",
    ]
    recipe, cluster, unknown = split_overrides("pretrain", words)
    assert recipe == ["optim.lr=1", "train.seed=1"]
    assert cluster == ["nodes=4", "time=2:00:00", "requeue.budget=3", "partition=a"]
    assert unknown == []


def test_a_key_that_neither_has_is_named_with_a_guess() -> None:
    unknown = split_overrides("pretrain", ["node=4", "teacher.checkpoint=a", "qqq=1"])[2]
    assert unknown[0].startswith(
        "node: no such key in a recipe of pretrain or in a cluster file; did you mean 'nodes'?"
    )
    assert unknown[1].startswith("teacher: no such key")
    assert "a recipe has data, model, optim" in unknown[2]


def test_keys_of_the_cluster_are_none_of_a_recipes() -> None:
    from configs.cluster import ClusterConfig
    from launch.submission.request import SCHEMAS

    for schema in SCHEMAS.values():
        assert not set(schema.model_fields) & set(ClusterConfig.model_fields)


@pytest.mark.parametrize(
    ("words", "seconds"), [(["time=2:00:00"], 7200), (["time=90"], 5400), (["time=90 min"], 5400)]
)
def test_a_time_on_the_command_line_needs_no_quotes(words: list[str], seconds: int) -> None:
    assert load_cluster("slurm_example", words).time_s == seconds


def test_mistakes_in_recipe_and_cluster_file_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("kind: slurm\ntime: 90 min\nparttition: a\n")
    with pytest.raises(ConfigError) as refused:
        read_request(
            "pretrain", RECIPE, ["optim.lrr=1", "node=2"], cluster=str(tmp_path / "c.yaml"), out=None
        )
    for words in (
        "node: no such key",
        "optim.lrr: no such key; did you mean 'lr'?",
        "did you mean 'partition'?",
    ):
        assert words in str(refused.value)


def test_the_run_folder_is_absolute_and_named_after_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = read_request("pretrain", RECIPE, [], cluster="local", out=None)
    assert request.out == tmp_path / "runs" / "pretrain_vit"
    assert read_request("pretrain", RECIPE, [], cluster="local", out=Path("a")).out == tmp_path / "a"
    assert request.cluster.kind == "local"


def test_an_unknown_cluster_file_is_a_message() -> None:
    with pytest.raises(
        ConfigError, match=r"no cluster file at 'slurm_exmaple'; .* debug, local, slurm_example"
    ):
        load_cluster("slurm_exmaple")
