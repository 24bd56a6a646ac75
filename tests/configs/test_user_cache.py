"""configs.user_cache: what is remembered is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.user_cache import read_remembered, remember


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mirada"


def test_the_last_that_was_remembered_is_found_and_nothing_lies_beside_it(cache: Path) -> None:
    assert read_remembered("kinds", "a") == {}
    for number in range(3):
        remember("kinds", "a", {"number": number})
    assert read_remembered("kinds", "a") == {"number": 2} and read_remembered("kinds", "b") == {}
    assert [path.name for path in (cache / "kinds").iterdir()] == ["a.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_file_counts_as_none(cache: Path, damage: bytes) -> None:
    remember("kinds", "a", {"number": 1})
    (cache / "kinds" / "a.json").write_bytes(damage)
    assert read_remembered("kinds", "a") == {}


def test_without_a_place_to_write_nothing_is_remembered_and_nothing_fails(cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    remember("kinds", "a", {"number": 1})
    assert read_remembered("kinds", "a") == {}
