"""A teacher whose weights lie on the ranks in shares says what the whole one says: two real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.releases import make_release
from tests.support.run_distributed import run_ranks

pytestmark = pytest.mark.slow


def test_it_says_the_same_and_each_rank_holds_its_share(tmp_path: Path) -> None:
    make_release(tmp_path / "vit", kind="vit", embed_dim=192)
    make_release(tmp_path / "cnn", kind="cnn")
    for said in run_ranks(["tests/distributed/sharded_teacher_program.py", str(tmp_path)]):
        found = json.loads(said.splitlines()[-1])
        assert set(found) == {"vit, fp32", "vit, bf16", "cnn, fp32", "cnn, bf16"}
        for name, result in found.items():
            assert result["differs"] <= 1e-6, name
            if name.startswith(
                "vit"
            ):  # weights of less than 100,000 numbers stay whole, to be asked for less often
                assert result["held"] <= 0.65 * result["whole"], name
