"""The doctor's checks on real ranks: a healthy pair of nodes, and one where everything is wrong on the second."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.finding import Finding, read_findings
from tests.support.run_distributed import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    run_ranks(["tests/distributed/doctor_program.py", str(folder)], world_size=4)
    return folder


def by_check(path: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in read_findings(path)}


def test_healthy_nodes_pass_every_check(folder: Path) -> None:
    found = by_check(folder / "healthy.json")
    assert {finding.level for finding in found.values()} <= {"ok", "note"}, found
    assert found["ranks"].said == "4 rank(s) on 2 node(s): n1, n2"
    assert "within a node, " in found["all-reduce"].said and "between 2 nodes" in found["all-reduce"].said
    assert found["gpus"].said == "none asked for, none used"
    assert found["data"].said.startswith("'mirada://sample/train': 6,000 samples")
    offset_ms = float(found["clocks"].said.split()[2])
    assert abs(offset_ms) < 100  # one machine


@pytest.mark.parametrize(
    ("check", "said", "advice"),
    [
        ("ranks", "but n1 has 2, n2 has 2 instead of 3", "tasks_per_node"),
        ("versions", "timm 1.", "install them on a file system that all nodes share"),
        ("versions", "0.9.0 on n2", "one container image"),
        ("cpus per task", "cores, not 4096", "lower cpus_per_task"),
        ("gpus", "no GPU is visible to a rank on n1, n2", "nvidia-smi"),
        ("clocks", "n2 is +5", "chronyc"),
        ("shared folder", "n2 does not see within 1 s what n1 writes in", "all nodes mount"),
        ("data", "no index in", "this check could not be made"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(folder: Path, check: str, said: str, advice: str) -> None:
    finding = by_check(folder / "faulty.json")[check]
    assert finding.level == "fail"
    assert said in finding.said and advice in finding.advice


def test_a_check_that_fails_does_not_stop_the_others(folder: Path) -> None:
    assert list(by_check(folder / "faulty.json")) == list(by_check(folder / "healthy.json"))
