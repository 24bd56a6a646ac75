"""Whatever stands in a tar or an image: no crash, no hang, no more memory than stated, and every fault has a name."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from configs.data import DataConfig
from data_pipeline.loader import ShardLoader
from data_pipeline.reindex import index_shards
from tests.support.fuzz import IMAGES, MEMORY_BYTES, mutate
from tests.support.shards import write_tar

ROOT = Path(__file__).resolve().parents[2]
REASONS = {"empty", "truncated", "damaged", "not an image", "too many pixels", "too large"}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("what", "count"), [("tar", 800), ("image", 800)])
def test_mutated_input_is_read_or_refused_within_the_bounds(what: str, count: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.fuzz", what, str(tmp_path), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (
        f"exit code {done.returncode}; the input is {tmp_path}/last\n{done.stderr[-3000:]}"
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ends"].keys() <= REASONS | {"read", "refused"}
    assert found["ends"]["read"] > 10 and len(found["ends"]) >= (2 if what == "tar" else 5), found
    assert found["grown_mb"] << 20 < MEMORY_BYTES


def test_a_worker_survives_a_corpus_of_mutated_images(tmp_path: Path) -> None:
    rng, members = random.Random(0), []
    for number in range(120):
        kinds = [
            rng.choice(["set", "flip", "delete", "repeat", "insert", "cut", "zero"])
            for _ in range(number % 4)
        ]
        mutations = [(kind, rng.random(), rng.randrange(700), rng.randbytes(4)) for kind in kinds]
        image = mutate(rng.choice(IMAGES), mutations, span=rng.choice([32, 300, None]))
        members.append((f"{number:06d}.jpg", image))
    write_tar(tmp_path / "a.tar", members)
    index = index_shards(str(tmp_path))
    data = DataConfig(train="x", image_size=16, workers=1, max_bad_fraction=1.0)
    loader = ShardLoader(index, data, global_batch=20, seed=0)
    batches = iter(loader)
    served = [next(batches) for _ in range(loader.batches_per_epoch)]
    assert [len(batch.images) for batch in served] == [20] * 6
    assert 0 < sum(loader.bad_samples.values()) < 90 and loader.bad_samples.keys() <= REASONS
