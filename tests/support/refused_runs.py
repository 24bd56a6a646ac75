"""``python tests/support/refused_runs.py FOLDER``: what `mirada finetune` says to the words in FOLDER/cases.json.

One process imports torch, and is forked for each: a process joins a group of ranks once. Prints exit codes and stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from configs.exit_code import run_main
from engine.command import parse_command
from finetune.run import run


def ask(words: list[str], said: Path) -> int:
    """The exit code; what goes to stderr goes to `said`."""
    if (pid := os.fork()) == 0:
        _answer(words, said)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _answer(words: list[str], said: Path) -> NoReturn:
    code = 1
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
        try:
            run_main(lambda: run(parse_command("finetune", words)))
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)


def main() -> None:
    folder = Path(sys.argv[1])
    answers = []
    for words in json.loads((folder / "cases.json").read_text()):
        code = ask(words, folder / "said.txt")
        answers.append((code, (folder / "said.txt").read_text()))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
