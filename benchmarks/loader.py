"""Measures ShardLoader and its peers side by side: images/s, memory, time to the first batch, share of the wall.

apt-get install libturbojpeg0-dev libopencv-dev pkg-config libavdevice59 libavfilter8
python -m venv PEERS && PEERS/bin/pip install -r benchmarks/loader_peers/requirements.txt    # its header says the rest
python -m benchmarks.loader CORPORA --peers PEERS/bin/python [--minutes 45]

What is missing is made first: the corpora, by benchmarks.photographs, and the peers' own forms of them. Then each
loader's best number of workers is searched for, for uint8 and for float32 batches, in two short turns of all. Then come
rounds over all loaders, so that what else the machine does meets all of them. Every measurement is one process group
and one line in CORPORA/loader.jsonl; what stands there is not measured again, so a run that was cut goes on. At the end
`benchmarks/results/loader*.json` are written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from benchmarks.loader_peers.peers import MARKED, OURS, PEERS, PLAIN, WALL
from benchmarks.loader_peers.task import FORMS
from benchmarks.loader_results import write_results
from data_pipeline.index import open_index

ROOT = Path(__file__).resolve().parents[1]
WORKERS = (1, 2, 3)
_SEARCH_TURNS = 2
_LONGEST_S = 180  # FFCV compiles for half a minute before its first batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure."""

    loader: str
    corpus: str = "jpeg"
    form: str = "uint8"
    augmentation: str = ""
    workers: int = 0
    round: int = 0
    """From 1; the turns of the search for the number of workers count from 0 down."""


_MARKED = ("jpeg", "jpeg_2000x1500")
VARIANTS = tuple(
    Case(loader=loader, corpus=corpus, augmentation=augmentation)
    for corpus, augmentation in (
        ("jpeg", "randaugment"),
        ("jpeg", "colour_jitter"),
        ("jpeg", "erase"),
        ("png", ""),
        ("webp", ""),
        ("jpeg_2000x1500", ""),
        ("jpeg_64x64", ""),
    )
    for loader in (OURS, PLAIN, MARKED)
    if loader != MARKED or corpus in _MARKED
)


def main(arguments: list[str]) -> int:
    """Measures what is missing until the time is up, then writes the results."""
    given = _arguments(arguments)
    log = given.log or given.corpora / "loader.jsonl"
    deadline = time.monotonic() + given.minutes * 60
    subprocess.run([sys.executable, "-m", "benchmarks.photographs", given.corpora], check=True, cwd=ROOT)
    for corpus in _MARKED:
        _put_markers(given.corpora / corpus, PEERS[MARKED].place(given.corpora, corpus))
    subprocess.run(
        [given.peers, "-m", "benchmarks.loader_peers.prepare", given.corpora], check=True, cwd=ROOT
    )
    _warm_page_cache(given.corpora)
    names = [name for name in PEERS if given.only is None or name in given.only]
    for case in _searched(names):
        _measure(case, log, given, seconds=given.seconds / 2)
    best = _best_workers(log)
    for number in range(1, given.rounds + 1):
        begun = time.monotonic()
        for case in _round(names, best, number, with_variants=number <= given.variant_rounds):
            _measure(case, log, given, seconds=given.seconds)
        if time.monotonic() + (time.monotonic() - begun) > deadline:
            print(f"stopped after round {number}: the next would pass --minutes {given.minutes:g}")
            break
    write_results(log, given.out)
    return 0


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path, help="folder that benchmarks.photographs filled")
    parser.add_argument(
        "--peers", default=sys.executable, help="Python of the peers' environment; ours keeps its own"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant-rounds", type=int, default=1, help="rounds that include the other corpora")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="measured, after a warm-up; half in the search"
    )
    parser.add_argument(
        "--minutes", type=float, default=45.0, help="no round starts that would not end by then"
    )
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="LOADER")
    parser.add_argument("--log", type=Path, help="JSON lines; default: CORPORA/loader.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(arguments)


def _put_markers(corpus: Path, target: Path) -> None:
    """The same images in the same order and in as many shards."""
    num_shards, num_samples = len(list(corpus.glob("*.tar"))), open_index(str(corpus)).num_samples
    build = [
        sys.executable,
        "-m",
        "data_pipeline",
        "build",
        corpus,
        target,
        "--restart-markers",
        "--no-shuffle",
    ]
    size = -(-num_samples // num_shards)
    subprocess.run([*build, "--shard-size", str(size), "--shard-bytes", "1GB"], check=True, cwd=ROOT)


def _searched(names: list[str]) -> Iterator[Case]:
    """Twice all, one after the other: a single short turn has been seen to be a third off."""
    for turn in range(_SEARCH_TURNS):
        for name, form, workers in itertools.product(names, FORMS, WORKERS):
            if name != WALL:  # it has as many as there are cores
                yield Case(loader=name, form=form, workers=workers, round=-turn)


def _best_workers(log: Path) -> dict[tuple[str, str], int]:
    """By loader and form."""
    rates: dict[tuple[str, str], dict[int, list[float]]] = {}
    for line in _lines(log):
        if line["round"] <= 0 and "images_per_s" in line:
            of_loader = rates.setdefault((line["loader"], line["form"]), {})
            of_loader.setdefault(line["workers"], []).append(line["images_per_s"])
    return {key: max(found, key=lambda workers: fmean(found[workers])) for key, found in rates.items()}


def _round(
    names: list[str], best: dict[tuple[str, str], int], number: int, *, with_variants: bool
) -> Iterator[Case]:
    cases = [
        Case(loader=name, form=form) for form in FORMS for name in names if (name, form) != (WALL, "float32")
    ]
    if with_variants:
        cases += [case for case in VARIANTS if case.loader in names]
    start = number * 7 % len(cases)  # no loader is always the first
    for case in cases[start:] + cases[:start]:
        workers = len(os.sched_getaffinity(0)) if case.loader == WALL else best.get((case.loader, case.form))
        if workers is not None:
            yield replace(case, workers=workers, round=number)


def _measure(case: Case, log: Path, given: argparse.Namespace, *, seconds: float) -> None:
    """Appends one line: the case and its figures, or the end of its error output."""
    known = asdict(case)
    if any(known.items() <= line.items() and "images_per_s" in line for line in _lines(log)):
        return
    peer = PEERS[case.loader]
    python = sys.executable if peer.distribution is None else given.peers
    command = [python, "-m", "benchmarks.loader_peers.measure", case.loader]
    command += [str(peer.place(given.corpora, case.corpus).resolve()), "--form", case.form]
    command += [
        "--workers",
        str(case.workers),
        "--seconds",
        str(seconds),
        "--augmentation",
        case.augmentation,
    ]
    figures = _run([*command, "--started", str(time.monotonic())])
    with log.open("a") as stream:
        stream.write(json.dumps({**known, **figures}) + "\n")
    shown = (
        f"{figures['images_per_s']:,.0f} images/s" if "images_per_s" in figures else figures["error"][-300:]
    )
    print(" ".join(str(value) for value in known.values() if value != ""), "->", shown, flush=True)


def _run(command: list[str]) -> dict[str, Any]:
    # Into files, not pipes: worker processes keep a pipe open after the one that is waited for has ended.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            process.wait(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            print(f"no result within {_LONGEST_S} s", file=errors, flush=True)
        finally:
            _end_group(process)
        lines, told = (_text(stream).strip().splitlines() for stream in (output, errors))
    if lines and lines[-1].startswith('{"images_per_s"'):
        return dict(json.loads(lines[-1]))
    return {"error": "\n".join(told[-20:]) or f"ended with {process.returncode}"}


def _text(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its group has its number; workers outlive it
    process.wait()


def _warm_page_cache(corpora: Path) -> None:
    for path in corpora.rglob("*"):
        if path.is_file() and "pictures" not in path.parts:
            with path.open("rb", buffering=0) as stream:
                while stream.read(1 << 22):
                    pass


def _lines(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
