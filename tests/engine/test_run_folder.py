"""Whose a run folder is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configs.base import ConfigError
from configs.training import RunConfig
from engine.run_folder import config_digest, open_run_folder
from engine.world import World
from tests.support.run_distributed import ROOT
from tests.support.tiny_run import tiny_config


def test_a_new_folder_holds_the_config_and_can_be_opened_again(tmp_path: Path, world: World) -> None:
    config = tiny_config()
    folder = open_run_folder(tmp_path / "runs" / "a", config, world)
    assert "duration: 12 steps" in folder.config.read_text()
    assert open_run_folder(tmp_path / "runs" / "a", config, world) == folder


def test_settings_that_do_not_change_the_weights_may_change(tmp_path: Path, world: World) -> None:
    open_run_folder(tmp_path / "a", tiny_config(), world)
    config = tiny_config(log_every=7, checkpoint_every="9 steps", keep_checkpoints=5)
    assert open_run_folder(tmp_path / "a", config, world).digest == config_digest(tiny_config())


def test_a_folder_of_another_config_is_refused_and_says_what_differs_and_what_to_do(
    tmp_path: Path, world: World
) -> None:
    open_run_folder(tmp_path / "a", tiny_config(), world)
    with pytest.raises(ConfigError, match=r"train.seed is 0 there and 3 here; .*--fresh"):
        open_run_folder(tmp_path / "a", tiny_config(seed=3), world)


def test_fresh_moves_the_old_contents_to_numbered_siblings(tmp_path: Path, world: World) -> None:
    for seed in range(3):
        folder = open_run_folder(tmp_path / "a", tiny_config(seed=seed), world, fresh=True)
        (folder.path / "note").write_text(str(seed))
    notes = {path.parent.name: path.read_text() for path in tmp_path.glob("*/note")}
    assert notes == {"a.1": "0", "a.2": "1", "a": "2"}


@pytest.mark.parametrize("fresh", [True, False])
def test_a_folder_that_is_no_run_folder_is_refused(tmp_path: Path, world: World, fresh: bool) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(ConfigError, match=r"not empty and not a run folder"):
        open_run_folder(tmp_path, tiny_config(), world, fresh=fresh)
    assert (tmp_path / "photo.jpg").exists()


def test_a_folder_with_only_logs_in_it_is_new(tmp_path: Path, world: World) -> None:
    (tmp_path / "logs").mkdir()
    open_run_folder(tmp_path, tiny_config(), world)


def test_a_file_is_no_folder(tmp_path: Path, world: World) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        open_run_folder(tmp_path / "a", tiny_config(), world)


def test_another_kind_of_run_is_refused(tmp_path: Path, world: World) -> None:
    open_run_folder(tmp_path / "a", tiny_config(), world)
    (tmp_path / "a" / "config.yaml").write_text("kind: other\n")
    with pytest.raises(ConfigError, match="belongs to another kind of run"):
        open_run_folder(tmp_path / "a", tiny_config(), world)


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path, world: World) -> None:
    open_run_folder(tmp_path / "a", tiny_config(), world)
    program = (
        "import sys, torch; from pathlib import Path; from tests.support.tiny_run import *\n"
        "world = World(rank=0, size=1, local_rank=0, device=torch.device('cpu'))\n"
        "open_run_folder(Path(sys.argv[1]), tiny_config(), world)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a")], cwd=ROOT, capture_output=True, text=True
    )
    assert "another process is training in" in done.stderr


def test_the_digest_depends_on_the_values_and_not_on_their_order(tmp_path: Path) -> None:
    config = tiny_config()
    turned = RunConfig.model_validate(dict(reversed(config.model_dump(mode="json").items())))
    assert config_digest(turned) == config_digest(config) != config_digest(tiny_config(seed=1))
