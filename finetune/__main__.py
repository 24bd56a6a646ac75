"""python -m finetune RECIPE [key=value ...] --out DIR: one rank of a fine-tuning run."""

import sys

from configs.exit_code import run_main
from engine.command import parse_command
from finetune.run import run

if __name__ == "__main__":
    run_main(lambda: run(parse_command("finetune", sys.argv[1:])))
