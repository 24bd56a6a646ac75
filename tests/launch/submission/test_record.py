"""The record of a submission comes back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.base import ConfigError
from configs.cluster import ClusterConfig, NodeRange
from launch.submission.record import (
    Submission,
    forget_submission,
    launch_folder,
    read_submission,
    with_jobs,
    write_submission,
)


def submission(run: Path) -> Submission:
    launch_folder(run).mkdir(parents=True, exist_ok=True)
    return Submission(
        program="pretrain",
        command=("pretrain", "/there/recipe.yaml", "--out", str(run)),
        recipe="mine.yaml",
        overrides=("optim.lr=1e-3",),
        cluster=ClusterConfig(
            kind="slurm", time="2-00:00:00", nodes=NodeRange(min=2, max=4), gpus_per_node=8
        ),
        snapshot=launch_folder(run) / "snapshot-1-2",
        commit="1a2b+3c",
        config_hash="0123",
        run_folder=run,
        workdir=Path("/home/me"),
        created=1.5,
        user="me",
        node_counts=(2, 4),
    )


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    former = submission(tmp_path / "a")
    assert read_submission(tmp_path / "a") is None
    path = write_submission(former)
    assert read_submission(tmp_path / "a") == former
    later = replace(with_jobs(former, ("17_0", "17_1")), kind="array", parent=tmp_path)
    write_submission(later)
    assert read_submission(tmp_path / "a") == later
    assert [entry.name for entry in path.parent.iterdir()] == ["submission.json"]


def test_a_refused_submission_leaves_what_was_there_before(tmp_path: Path) -> None:
    first = with_jobs(submission(tmp_path / "a"), ("17",))
    write_submission(first)
    write_submission(replace(first, job_ids=()))
    forget_submission(tmp_path / "a", first)
    assert read_submission(tmp_path / "a") == first
    forget_submission(tmp_path / "a", None)
    assert read_submission(tmp_path / "a") is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 99}'])
def test_a_broken_record_is_a_message(tmp_path: Path, text: str) -> None:
    path = write_submission(submission(tmp_path / "a"))
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"record of the submission, .*submission.json', cannot be read"):
        read_submission(tmp_path / "a")


def test_a_record_with_a_wrong_cluster_is_a_message(tmp_path: Path) -> None:
    path = write_submission(submission(tmp_path / "a"))
    written = json.loads(path.read_text())
    written["cluster"]["nodes"] = "many"
    path.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_submission(tmp_path / "a")
