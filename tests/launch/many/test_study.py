"""Studies in a real journal file, shared by real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.many.config import PruneConfig, RangeConfig, SearchConfig
from launch.many.metric_tail import MetricTail
from launch.many.study import Study, Trial

SPACE = {
    "optim.lr": RangeConfig(low=1e-5, high=1e-1, log=True),
    "model.args.depth": RangeConfig(low=1, high=6),
    "optim.betas": [[0.9, 0.99], [0.9, 0.999]],
}
ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import sys
from pathlib import Path
from launch.many.config import SearchConfig
from launch.many.study import Study
out, worker, config = Path(sys.argv[1]), int(sys.argv[2]), SearchConfig.model_validate_json(sys.argv[3])
study = Study(out, config)
while (trial := study.next(worker)) is not None:
    study.report(trial, [(1, 0.5)])
    study.complete(trial, trial.settings["optim.lr"])
"""


def config(**changes: object) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, "trials": 6, "prune": None, **changes})


def taken(study: Study, worker: int = 0) -> Trial:
    trial = study.next(worker)
    assert trial is not None
    return trial


def test_trials_lie_within_the_space_and_their_overrides_say_so(tmp_path: Path) -> None:
    study = Study(tmp_path, config())
    for number in range(6):
        trial = taken(study)
        assert trial.number == number
        assert 1e-5 <= trial.settings["optim.lr"] <= 1e-1
        assert trial.settings["model.args.depth"] in range(1, 7)
        assert trial.settings["optim.betas"] in SPACE["optim.betas"]
        assert trial.overrides[2] == f"optim.betas={json.dumps(trial.settings['optim.betas'])}"
        study.complete(trial, 1.0)
    assert study.next(0) is None


def test_the_same_seed_and_values_draw_the_same_trials_whoever_asks(tmp_path: Path) -> None:
    drawn = []
    for name, workers in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        found = []
        for number in range(6):
            study = Study(tmp_path / name, config(workers=workers, sampler="random", seed=3))  # a new process
            trial = taken(study, number % workers)
            found.append(dict(trial.settings))
            study.complete(trial, 0.0)
        drawn.append(found)
    assert drawn[0] == drawn[1]
    assert len({settings["optim.lr"] for settings in drawn[0]}) == 6


def test_a_worker_that_comes_back_goes_on_with_its_own_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, config(workers=2))
    first, second = taken(study, 0), taken(study, 1)
    study.report(second, [(1, 0.5), (2, 0.6)])
    again = taken(Study(tmp_path, config(workers=2)), 1)
    assert (again.number, again.settings, again.reported) == (second.number, second.settings, {1, 2})
    assert taken(study, 0).number == first.number


def test_processes_side_by_side_run_each_trial_once_and_no_more_than_asked_for(tmp_path: Path) -> None:
    wanted = config(trials=9, workers=3, direction="maximize")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(number), wanted.model_dump_json()], cwd=ROOT
        )
        for number in range(3)
    ]
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0, 0]
    rows = json.loads((tmp_path / "trials.json").read_text())
    assert [row["trial"] for row in rows] == list(range(9))
    assert {row["state"] for row in rows} == {"complete"}
    best = Study(tmp_path, wanted).best()
    assert best is not None
    assert best.settings["optim.lr"] == max(row["value"] for row in rows)


def test_a_trial_below_the_median_at_the_same_step_is_pruned_after_the_start(tmp_path: Path) -> None:
    study = Study(tmp_path, config(prune=PruneConfig(startup_trials=2, warmup_steps=2)))
    for value in (0.5, 0.7):
        trial = taken(study)
        assert not study.report(trial, [(step, value) for step in (1, 2, 3)])
        study.complete(trial, value)
    bad = taken(study)
    assert not study.report(bad, [(1, 0.1)])  # within the warm-up
    assert study.report(bad, [(1, 0.1), (3, 0.1)])
    study.prune(bad)
    good = taken(study)
    assert not study.report(good, [(3, 0.65)])
    assert [row["state"] for row in study.rows()] == ["complete", "complete", "pruned", "running"]


def test_a_failed_trial_keeps_its_reason(tmp_path: Path) -> None:
    study = Study(tmp_path, config())
    study.fail(taken(study), "failed with exit code 1")
    (row,) = json.loads((tmp_path / "trials.json").read_text())
    assert (row["state"], row["failure"], row["value"]) == ("fail", "failed with exit code 1", None)
    assert study.best() is None


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_best_follows_the_direction(tmp_path: Path, direction: str) -> None:
    study = Study(tmp_path, config(direction=direction))
    for value in (0.2, 0.9, 0.4):
        study.complete(taken(study), value)
    best = study.best()
    assert best is not None and best.number == (1 if direction == "maximize" else 0)


FOUR = {"a": [None, {"name": "se"}], "b": [1, 2, 3]}
MEMBERS = [{"a": a, "b": b} for a in FOUR["a"] for b in FOUR["b"] if b != 2]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_of_a_space_with_members_each_is_a_trial_once_and_nothing_else_is(
    tmp_path: Path, sampler: str
) -> None:
    wanted = SearchConfig.model_validate({"space": FOUR, "trials": 20, "prune": None, "sampler": sampler})
    study, drawn = Study(tmp_path, wanted, members=MEMBERS), []
    while (trial := study.next(0)) is not None:
        drawn.append(dict(trial.settings))
        study.complete(trial, float(trial.settings["b"]) + (trial.settings["a"] is None))
    assert len(drawn) == 4 and all(settings in drawn for settings in MEMBERS)
    assert [row["settings"] for row in study.rows()] == drawn
    best = study.best()
    assert best is not None and best.settings == {"a": None, "b": 3}  # as trying all of them says
    narrower = Study(tmp_path, wanted, members=[member for member in MEMBERS if member["b"] == 1])
    assert narrower.next(0) is None  # what was tried for wider limits counts
    best = narrower.best()
    assert best is not None and best.settings == {"a": None, "b": 1}


def test_members_that_are_hard_to_draw_are_found(tmp_path: Path) -> None:
    space = {f"stage {stage}": [1, 2, 3, 4, 5, 6] for stage in range(4)}
    members = [dict.fromkeys(space, 6), {**dict.fromkeys(space, 6), "stage 0": 5}]
    study = Study(
        tmp_path, SearchConfig.model_validate({"space": space, "trials": 2, "prune": None}), members=members
    )
    first = taken(study)
    study.complete(first, 1.0)
    second = taken(study)
    assert first.settings != second.settings and all(t.settings in members for t in (first, second))


def test_a_metric_is_read_on_from_where_the_last_look_ended(tmp_path: Path) -> None:
    tail = MetricTail(tmp_path, "val/top1")
    assert tail.read() == []
    with (tmp_path / "events.jsonl").open("w") as log:
        log.write('{"kind": "run"}\n{"kind": "metrics", "step": 1, "values": {"train/loss": 2}}\n')
        log.write('{"kind": "evaluation", "step": 4, "values": {"val/top1": 50}}\n{"kind": "evaluation", "st')
        log.flush()
        assert tail.read() == [(4, 50.0)]
        log.write('ep": 8, "values": {"val/top1": 60.5}}\n')
        log.flush()
        assert tail.read() == [(8, 60.5)]
    assert tail.read() == []
