"""`python -m benchmarks COMMAND`: one command per module, each with HELP, add_arguments and main.

Without a command it is `all`.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import (
    codegen,
    compare,
    cpu,
    curves,
    everything,
    gpu,
    micro,
    peers,
    report,
    tail,
    train,
)

COMMANDS = {
    "all": everything,
    "cpu": cpu,
    "peers": peers,
    "tail": tail,
    "curves": curves,
    "train": train,
    "micro": micro,
    "report": report,
    "compare": compare,
    "codegen": codegen,
    "gpu": gpu,
}


def main() -> int:
    """Parse the command line and run the chosen command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fastopt against torch.optim. Every claim is a ratio taken inside one "
        "process: contestants run in turn, each is checked before it is timed.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(
            commands.add_parser(name, help=module.HELP, description=module.HELP + ".")
        )
    arguments = parser.parse_args(sys.argv[1:] or ["all"])
    code: int = COMMANDS[arguments.command].main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
