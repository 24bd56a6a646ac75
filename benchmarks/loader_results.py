"""Turns the loader benchmark's lines into its two committed result files: peers side by side, and other corpora."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loader_peers.peers import MARKED, OURS, PEERS, PLAIN, WALL
from benchmarks.loader_peers.task import FORMS
from benchmarks.result_file import write_result_file
from engine.machine import describe_machine

_COLUMNS = {
    "name": ["loader", "s"],
    "form": ["batch", "s"],
    "workers": ["workers", "d"],
    "images_per_s": ["images/s", ",.0f"],
    "spread": ["lowest-highest", "s"],
    "to_plain": ["x plain webdataset", ".2f"],
    "ours": ["Mirada / it", "s"],
    "marked": ["with restart markers / it", "s"],
    "memory_mb": ["memory, MB", ",.0f"],
    "of_files_mb": ["of it mapped files", ",.0f"],
    "first_batch_s": ["first batch after asking, s", ".1f"],
    "start_s": ["after process start, s", ".1f"],
}
_VARIANT_COLUMNS = {
    "name": ["images", "s"],
    "ours": ["Mirada, images/s", ",.0f"],
    "per_core": ["per core", ",.0f"],
    "plain": ["plain webdataset, images/s", ",.0f"],
    "ratio": ["ratio", ".2f"],
    "marked": ["Mirada, restart markers", ",.0f"],
}
_VARIANTS = {
    ("jpeg", ""): "JPEG 500x375",
    ("jpeg", "randaugment"): "the same with RandAugment (2 operations, magnitude 9)",
    ("jpeg", "colour_jitter"): "the same with colour jitter (0.4, 0.4, 0.4)",
    ("jpeg", "erase"): "the same with random erasing (0.25)",
    ("png", ""): "PNG 500x375",
    ("webp", ""): "WebP 500x375, quality 90",
    ("jpeg_2000x1500", ""): "JPEG 2000x1500",
    ("jpeg_64x64", ""): "JPEG 64x64",
}

Lines = list[dict[str, Any]]


def write_results(log: Path, folder: Path) -> None:
    """Writes loader.json and loader_variants.json, and prints which of the wanted ratios are reached."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    measured = [line for line in lines if line["round"] > 0 and "images_per_s" in line]
    main = [line for line in measured if (line["corpus"], line["augmentation"]) == ("jpeg", "")]
    rows = [row for form in FORMS for name in PEERS if (row := _row(main, name, form))]
    versions = {PEERS[line["loader"]].distribution: line["version"] for line in measured if line["version"]}
    write_result_file(
        folder / "loader.json", columns=_COLUMNS, rows=rows, note=_note(main), versions=versions
    )
    variants = [row for place, title in _VARIANTS.items() if (row := _variant_row(measured, place, title))]
    note = "uint8 batches of 224x224; one run on the machine of the table above."
    write_result_file(
        folder / "loader_variants.json",
        columns=_VARIANT_COLUMNS,
        rows=variants,
        note=note,
        versions=versions,
    )
    for row in rows:
        for key, reached in (("ours", row["reached"]), ("marked", row["reached_marked"])):
            if reached is not None:
                word = "yes" if reached else "NO "
                print(f"{word} {row['name']}, {row['form']}: {key} {row[key]}, wanted {row['wanted']}")


def ratios(lines: Lines, above: Mapping[str, Any], below: Mapping[str, Any]) -> list[float]:
    """Rate of `above` / rate of `below`, round by round, where both were measured."""
    over, under = (
        {line["round"]: line["images_per_s"] for line in _matching(lines, case)} for case in (above, below)
    )
    return [over[number] / under[number] for number in sorted(over.keys() & under.keys())]


def _row(lines: Lines, name: str, form: str) -> dict[str, Any] | None:
    this = {"loader": name, "form": form}
    own = _matching(lines, this)
    if not own:
        return None
    peer = PEERS[name]
    rates = [line["images_per_s"] for line in own]
    to_plain = ratios(lines, this, {**this, "loader": PLAIN})
    ours, marked = (
        [] if name in (OURS, MARKED, WALL) else ratios(lines, {**this, "loader": loader}, this)
        for loader in (OURS, MARKED)
    )
    shown = {
        key: median(line[key] for line in own)
        for key in ("memory_mb", "of_files_mb", "first_batch_s", "start_s")
    }
    return {
        "name": f"{peer.title} {own[0]['version'] or ''}".strip(),
        "form": form,
        "workers": own[0]["workers"],
        "images_per_s": median(rates),
        "spread": f"{min(rates):,.0f}-{max(rates):,.0f}",
        "to_plain": median(to_plain) if to_plain else None,
        "ours": _middle_and_ends(ours),
        "marked": _middle_and_ends(marked),
        "rounds": len(own),
        "wanted": peer.wanted,
        "reached": median(ours) >= peer.wanted if ours else None,
        "reached_marked": median(marked) >= peer.wanted if marked else None,
        **(shown if name != WALL else {}),
    }


def _middle_and_ends(found: list[float]) -> str | None:
    return f"{median(found):.2f} [{min(found):.2f}-{max(found):.2f}]" if found else None


def _variant_row(lines: Lines, place: tuple[str, str], title: str) -> dict[str, Any] | None:
    corpus, augmentation = place
    same = _matching(lines, {"corpus": corpus, "augmentation": augmentation, "form": "uint8"})
    ours, plain, marked = (_matching(same, {"loader": name}) for name in (OURS, PLAIN, MARKED))
    if not ours or not plain:
        return None
    rate = median(line["images_per_s"] for line in ours)
    return {
        "name": title,
        "ours": rate,
        "per_core": rate / int(describe_machine()["cores"]),
        "plain": median(line["images_per_s"] for line in plain),
        "ratio": median(ratios(same, {"loader": OURS}, {"loader": PLAIN})),
        "marked": median(line["images_per_s"] for line in marked) if marked else None,
    }


def _note(lines: Lines) -> str:
    rounds = len({line["round"] for line in lines})
    share, marked = (
        _middle_and_ends(ratios(lines, {"loader": loader, "form": "uint8"}, {"loader": WALL}))
        for loader in (OURS, MARKED)
    )
    reached = ""
    if share:
        reached = (
            " The wall is entropy decoding alone, of whole files by libjpeg-turbo's jpeg_read_coefficients in one "
            f"process per core: Mirada reaches {share} of it{f', with restart markers {marked}' if marked else ''}."
        )
    described = describe_machine()
    return (
        f"6,000 JPEGs of 500x375 cut from photographs, 6 shards, page cache warm; random resized crop to 224 and flip, "
        f"batches of 64; each loader with its best of 1 to 3 workers. Medians over {rounds} interleaved rounds; ratios "
        f"are taken round by round [lowest-highest]. Memory is that of all of a loader's processes (PSS). "
        f"{described['processor']}, {described['cores']} cores.{reached}"
    )


def _matching(lines: Iterable[dict[str, Any]], case: Mapping[str, Any]) -> Lines:
    return [line for line in lines if case.items() <= line.items()]
