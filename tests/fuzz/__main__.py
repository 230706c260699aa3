"""`make fuzz`: rounds of hypothesis, each with a seed of its own, until the time is out.

    FUZZ_SECONDS  how long                         (default: 600)
    FUZZ_SEED     the first round's seed           (default: a random one)

FUZZ_SEED alone runs that round only, as it was when it failed, and makes it small.

The rounds run in a child process, so that one which dies is reported with its seed as well. The
machine is in machine.py; trial.py says what is right.
"""

from __future__ import annotations

import faulthandler
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = 20  # a round: some seconds


def rounds(seed: int, until: float) -> None:
    """In the child: round after round; the first failure ends it. Only a round that is run again is
    made small by hypothesis, which takes minutes.
    """
    faulthandler.enable()
    warnings.simplefilter("error")
    sys.path.insert(1, str(HERE.parent))
    import hypothesis
    from hypothesis.stateful import run_state_machine_as_test
    from machine import Programs

    small = () if until else (hypothesis.Phase.shrink,)
    settings = hypothesis.settings(
        phases=(hypothesis.Phase.generate, *small),
        max_examples=PROGRAMS,
        stateful_step_count=25,
        deadline=None,
        derandomize=False,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while True:
        print(f"seed {seed}", flush=True)
        run_state_machine_as_test(hypothesis.seed(seed)(Programs), settings=settings)
        seed += 1
        if time.time() > until:
            break


def main() -> int:
    first, seconds = os.environ.get("FUZZ_SEED"), os.environ.get("FUZZ_SECONDS")
    seed = int(first) if first else random.SystemRandom().randrange(10**6) * 1000
    until = 0.0 if first and not seconds else time.time() + float(seconds or 600)
    command = [sys.executable, str(HERE), str(seed), str(until)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    count = 0
    for line in child.stdout:
        print(line, end="", flush=True)
        if line.startswith("seed "):
            count, last = count + 1, line.split()[1]
    if child.wait():
        how = f"by signal {-child.returncode}" if child.returncode < 0 else "with what stands above"
        print(f"\nround {last} ended {how}. Again: FUZZ_SEED={last} make fuzz")
        return 1
    print(f"{count} rounds of {PROGRAMS} programs, nothing found")
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        rounds(int(sys.argv[1]), float(sys.argv[2]))
    else:
        sys.exit(main())
