"""`python -m benchmarks COMMAND`: HELP, add_arguments and main of each are what runs it.

Without a command it is `all`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks import compare, everything, report

COMMANDS: dict[str, Any] = {
    "all": everything,
    **{question.kind: question for question in report.QUESTIONS},
    "report": report,
    "compare": compare,
}


def main() -> int:
    """Parse the command line and run the chosen command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fastopt against torch.optim. Every claim is a ratio taken inside one "
        "process: contestants run in turn, each is checked before it is timed.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, help=command.HELP, description=command.HELP + ".")
        )
    arguments = parser.parse_args(sys.argv[1:] or ["all"])
    code: int = COMMANDS[arguments.command].main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
