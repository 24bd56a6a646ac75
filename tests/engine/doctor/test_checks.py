"""What single checks say of places that are there, and of those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.finding import Finding, read_findings, write_findings
from engine.doctor.corpora import check_corpus
from engine.doctor.gpus import check_attention, check_gpus
from engine.doctor.staff import NodeError, Staff, differing
from engine.doctor.tracking import check_tracking
from engine.world import World
from models import attention
from tests.support.mlflow_server import answering_500
from tests.support.shards import make_shards

ALONE = Staff(
    world=World(rank=0, size=1, local_rank=0, device=torch.device("cpu")),
    nodes=("n1",),
)


def test_a_finding_is_a_line_and_comes_back_from_its_file(tmp_path: Path) -> None:
    findings = [
        Finding(check="ranks", said="2 ranks"),
        Finding(check="gpus", level="fail", said="no GPU on n3", advice="set gpus_per_node"),
    ]
    assert [str(finding) for finding in findings] == [
        "ok    ranks              2 ranks",
        "FAIL  gpus               no GPU on n3: set gpus_per_node",
    ]
    write_findings(tmp_path / "findings.json", findings)
    assert read_findings(tmp_path / "findings.json") == findings
    assert [path.name for path in tmp_path.iterdir()] == ["findings.json"]


def test_what_differs_is_told_with_the_nodes_that_have_it() -> None:
    assert differing(["1.0", "1.0"], ["n1", "n2"]) == ""
    assert differing(["1.0", "2.0", "1.0", "2.0"], ["n1", "n2", "n3", "n2"]) == "1.0 on n1, n3; 2.0 on n2"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("nonsense", "unknown url type"),
        ("sqlite:////nowhere/at/all/mlflow.db", "there is no folder '/nowhere/at/all'"),
    ],
)
def test_a_tracking_server_that_is_away_is_a_note_with_the_way_around(uri: str, problem: str) -> None:
    finding = check_tracking(ALONE, uri)
    assert finding.level == "note"
    assert f"n1 does not reach {uri} (" in finding.said and problem in finding.said
    assert "mirada sync --watch" in finding.advice


def test_a_tracking_server_that_fails_is_told_by_its_code() -> None:
    with answering_500() as (port, _):
        assert "it answers 500" in check_tracking(ALONE, f"http://127.0.0.1:{port}").said


def test_a_folder_for_a_database_is_enough(tmp_path: Path) -> None:
    assert check_tracking(ALONE, f"sqlite:///{tmp_path}/mlflow.db").level == "ok"


def test_the_kernel_of_this_machine_is_right_and_named() -> None:
    finding = check_attention(ALONE)
    assert finding.level == "ok", finding
    assert finding.said.startswith("sdpa, ")


def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention._KERNELS, "sdpa", lambda call: call.v * 1.01)
    finding = check_attention(ALONE)
    assert finding.level == "fail"
    assert finding.said == "sdpa computes something else than the formula on n1"


def test_a_gpu_that_was_asked_for_and_is_not_there_is_a_failure() -> None:
    finding = check_gpus(ALONE, 8)
    assert finding.level == "fail" and finding.said == "no GPU is visible to a rank on n1"


def test_an_image_that_does_not_decode_is_named_by_shard_and_key(tmp_path: Path) -> None:
    make_shards(tmp_path, [4, 4])
    finding = check_corpus(ALONE, str(tmp_path))
    assert finding.level == "ok" and "8 samples" in finding.said

    make_shards(tmp_path, [4, 4], bad={2: b"no image at all"})
    finding = check_corpus(ALONE, str(tmp_path))
    assert finding.level == "fail"
    assert "test-000000.tar 000002: " in finding.said
    assert finding.advice == f"see what is wrong with: mirada data verify {tmp_path} --deep"


def test_a_shard_that_was_cut_off_is_an_error_that_names_node_and_shard(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [4])
    with Path(index.shards[0].url).open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(NodeError, match=r"node n1: DataError: shard 'test-000000\.tar' has 1024 bytes"):
        check_corpus(ALONE, str(tmp_path))
