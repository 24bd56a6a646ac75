"""python -m pretrain RECIPE [key=value ...] --out DIR: one rank of a pretraining run."""

import sys

from configs.exit_code import run_main
from engine.command import parse_command
from pretrain.run import run

if __name__ == "__main__":
    run_main(lambda: run(parse_command("pretrain", sys.argv[1:])))
