"""python -m pretrain.advise DATA [options]: proposes a recipe for a corpus; `mirada advise` starts it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from configs.base import ConfigError
from configs.exit_code import run_main
from data_pipeline.index import open_index
from engine.planning.accelerator import find_accelerator
from engine.planning.hardware import Hardware, find_hardware
from pretrain.advising.corpus_facts import CorpusFacts, find_facts
from pretrain.advising.rule import choose

if TYPE_CHECKING:
    from pretrain.advising.fitting import Fitted

_WIDTH = 118


def advise(arguments: Sequence[str]) -> int:
    """Writes the recipe, and says why it is this one."""
    given = _parse(arguments)
    _check(given)
    # NOTE: imported late: it brings DeepSpeed, and a mistake is to be told quickly.
    from pretrain.advising.fitting import Limits, fit

    facts = find_facts(open_index(given.data))
    if given.val is not None:
        _check_val(given.val, given.data)
    gpu = None if given.gpu is None else find_accelerator(given.gpu)
    hardware = find_hardware(gpu, memory_gib=given.memory_gb)
    choice = choose(facts, image_size=given.image_size)
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limits = Limits(latency_ms=given.latency_ms, device=here)
    fitted = fit(facts, choice, hardware, limits, train=given.data, val=given.val)
    given.out.write_text(_recipe_text(fitted, given.out))
    if given.json:
        found = {
            "recipe": str(given.out),
            **asdict(fitted),
            "corpus": asdict(facts),
            "hardware": asdict(hardware),
        }
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        sys.stdout.write(_answer(fitted, facts, hardware, given.out))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mirada advise", description="Propose a recipe.", allow_abbrev=False
    )
    parser.add_argument("data", metavar="DATA", help="folder of indexed shards to train on")
    parser.add_argument("--val", metavar="DIR", help="folder of indexed shards to evaluate on")
    parser.add_argument(
        "--out", type=Path, default=Path("advised.yaml"), metavar="FILE", help="recipe to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --out names")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="default: as the images are, 224 at most"
    )
    parser.add_argument(
        "--latency-ms", type=float, metavar="MS", help="most time for one image, on this machine"
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="kind to train on: h100, a100 ...; default: what is here"
    )
    parser.add_argument(
        "--memory-gb", type=float, metavar="GIB", help="memory of each rank; default: of the hardware"
    )
    parser.add_argument("--json", action="store_true", help="print all that was found, as JSON")
    return parser.parse_args(arguments)


def _check(given: argparse.Namespace) -> None:
    """Raises ConfigError with every mistake of the command line."""
    mistakes = []
    if given.image_size is not None and given.image_size < 8:
        mistakes.append(f"--image-size {given.image_size}: allowed is 8 pixels or more")
    for name in ("latency_ms", "memory_gb"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            mistakes.append(f"--{name.replace('_', '-')} {value:g}: allowed is more than 0")
    if given.out.suffix not in (".yaml", ".yml"):
        mistakes.append(f"--out {str(given.out)!r}: a recipe is a .yaml file")
    elif given.out.exists() and not given.overwrite:
        mistakes.append(f"--out {str(given.out)!r} is there already: give another name, or --overwrite")
    elif not given.out.parent.is_dir():
        mistakes.append(f"--out {str(given.out)!r}: there is no folder {str(given.out.parent)!r}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _check_val(val: str, train: str) -> None:
    ours, theirs = (open_index(location).classes for location in (train, val))
    if ours != theirs:
        raise ConfigError(
            f"--val {val!r} has {len(theirs)} classes and {train!r} has {len(ours)}, or their names differ: build both "
            "with the same classes (mirada data build --classes)"
        )


def _recipe_text(fitted: Fitted, out: Path) -> str:
    lines = [
        f"mirada pretrain {out}",
        f"Proposed by `mirada advise`: {'; '.join((*fitted.choice.reasons, *fitted.rejected))}.",
        f"Cost by `mirada plan`: {_cost(fitted)}.",
        "NOT run yet: a starting point whose learning rate and duration are not tuned for this corpus.",
    ]
    head = "".join(f"# {line}\n" for line in lines)
    body = yaml.safe_dump(dict(fitted.sections), sort_keys=False, default_flow_style=None, width=_WIDTH)
    return head + body


def _answer(fitted: Fitted, facts: CorpusFacts, hardware: Hardware, out: Path) -> str:
    model = fitted.sections["model"]
    chosen = model.get("attention", {})
    attention = chosen["gates"]["name"] if "gates" in chosen else "two_stage" if chosen else "its own"
    rows = [
        (
            "corpus",
            f"{facts.num_images:,} images, {facts.num_labelled:,} labelled, {facts.num_classes:,} classes",
        ),
        (
            "images",
            f"shorter side {facts.shorter_side} pixels, {'grey' if facts.channels == 1 else 'colour'}",
        ),
        ("hardware", f"{hardware.num_ranks} x {hardware.name}, {hardware.memory_gib:.1f} GiB for each rank"),
        ("model", f"{model['name']} at {fitted.choice.image_size} pixels, attention: {attention}"),
        *(("because", reason) for reason in fitted.choice.reasons),
        *(("left", reason) for reason in fitted.rejected),
        ("cost", _cost(fitted)),
        ("recipe", str(out)),
    ]
    return "".join(f"{name:<10}{value}\n" for name, value in rows)


def _cost(fitted: Fitted) -> str:
    latency = (
        "" if fitted.latency_ms is None else f", {fitted.latency_ms:.1f} ms for one image on this machine"
    )
    return (
        f"{fitted.num_parameters / 1e6:.1f} M parameters, {fitted.train_flops / 1e9:.1f} GFLOPs per image in training, "
        f"{fitted.memory_gib:.1f} GiB for each rank{latency}"
    )


if __name__ == "__main__":
    run_main(lambda: advise(sys.argv[1:]))
