"""python -m pretrain.path_costs RECIPE [key=value ...] --out FILE: the operations of every path of a supernet.

`mirada search` asks before it trains anything; the engine is not needed for it, nor the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.exit_code import run_main
from configs.load import load_config
from data_pipeline.joined import open_training
from data_pipeline.whole_file import write_whole
from models.build import build_model
from models.path_costs import measure_paths
from pretrain.config import PretrainConfig


def main(arguments: Sequence[str]) -> int:
    """Writes them."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.path_costs", allow_abbrev=False)
    parser.add_argument("recipe", help="YAML recipe with model.attention.search")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    given = parser.parse_intermixed_args(arguments)
    config = load_config(PretrainConfig, given.recipe, given.overrides).config
    data = config.data
    model = build_model(
        config.model,
        num_classes=len(open_training(data).classes),
        in_chans=data.channels,
        image_size=data.image_size,
    )
    costs = measure_paths(model, (data.channels, data.image_size, data.image_size))
    write_whole(given.out, json.dumps(costs.as_dict()) + "\n")
    return 0


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
