"""Cluster files: times as people and sbatch write them, and every mistake a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.base import ConfigError
from configs.cluster import ClusterConfig, seconds_of
from configs.load import load_config, packaged_root

SLURM: dict[str, Any] = {"kind": "slurm", "time": "1:00:00"}
SHIPPED = sorted((packaged_root() / "configs" / "cluster").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("2-12", 216_000),
        ("2-12:30", 217_800),
        ("2-00:00:01", 172_801),
        ("90 min", 5400),
        ("1.5 h", 5400),
        ("36 hours", 129_600),
        ("2 days", 172_800),
        ("45 s", 45),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it_and_with_units(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_days_hours_minutes_and_seconds_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert seconds_of(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total


@pytest.mark.parametrize("text", ["", "soon", "0", "0:00", "1:2:3:4", "-5", "90 parsecs", "1-"])
def test_what_is_no_time_limit_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"2-12:00:00.*36 hours.*90 min"):
        seconds_of(text)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_cluster_files_are_valid_and_begin_with_their_command(path: Path) -> None:
    load_config(ClusterConfig, path)
    assert path.read_text().startswith("# mirada launch ")
    assert f"--cluster {path.stem}" in path.read_text().splitlines()[0]


def test_a_time_that_yaml_reads_as_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("kind: slurm\ntime: 2:00:00\n")
    with pytest.raises(
        ConfigError, match=r"time: 7200 is not allowed: put a time limit in quotes, '2:00:00'"
    ):
        load_config(ClusterConfig, tmp_path / "c.yaml")


def test_a_wrong_key_is_named_with_a_guess(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("kind: slurm\ntime: 90 min\nparttition: gpu\nrequeue: {budgets: 3}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(ClusterConfig, tmp_path / "c.yaml")
    assert "parttition: no such key; did you mean 'partition'?  [c.yaml]" in str(refused.value)
    assert "requeue.budgets: no such key; did you mean 'budget'?  [c.yaml]" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "slurm"}, "time is missing"),
        ({**SLURM, "nodes": 0}, "nodes is 0, and a run needs at least 1"),
        ({**SLURM, "nodes": {"min": 4, "max": 2}}, "min is 4, more than max 2: swap them"),
        ({**SLURM, "grace_s": 3600}, "grace_s is 3600 s and time is 3600 s"),
        ({**SLURM, "extra": {"nodes": 3}}, "extra holds 'nodes', which Mirada sets itself"),
        ({**SLURM, "extra": {"--ntasks_per_node": 3}}, "extra holds '--ntasks_per_node'"),
        ({**SLURM, "environment": {"A-B": "1"}}, "'A-B' is not the name of a variable"),
        (
            {"kind": "local", "partition": "gpu", "setup": ["a"]},
            "no use for partition and setup: take it out",
        ),
        ({"kind": "local", "nodes": 2}, "runs on this machine alone; nodes is 2"),
        ({"kind": "debug", "tasks_per_node": 2}, "debug is one process; it would be 2"),
        ({"kind": "lsf"}, "'local', 'slurm' or 'debug'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        ClusterConfig.model_validate(settings)
    assert words in str(refused.value)


def test_ranks_follow_the_gpus_unless_they_are_given() -> None:
    eight = ClusterConfig(kind="slurm", time="1:00:00", gpus_per_node=8)
    assert (eight.ranks_per_node, eight.model_copy(update={"tasks_per_node": 2}).ranks_per_node) == (8, 2)
    assert ClusterConfig(kind="slurm", time="1:00:00").ranks_per_node == 1


def test_a_range_of_nodes_is_written_as_sbatch_takes_it() -> None:
    cluster = ClusterConfig.model_validate({**SLURM, "nodes": {"min": 2, "max": 4}})
    assert (cluster.min_nodes, cluster.max_nodes, cluster.nodes_text) == (2, 4, "2-4")
    assert ClusterConfig.model_validate({**SLURM, "nodes": 3}).nodes_text == "3"
