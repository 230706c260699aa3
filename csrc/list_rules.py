"""Print what isa.cpp includes: every rule's header, then FASTOPT_RULES(visit), a visit to each."""

from pathlib import Path

RULES = sorted(f.stem for f in (Path(__file__).parent / "rules").glob("*.h") if f.stem != "rule")

print(*(f'#include "rules/{rule}.h"' for rule in RULES), sep="\n")
print("#define FASTOPT_RULES(visit)", *(f"visit({rule})" for rule in RULES))
