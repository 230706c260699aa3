"""What the Triton kernel compiles to, without a GPU: targets, cases, compiling, checks, table.

Every rule, variant and dtype, a few mixtures of dtypes among them, is compiled for every target,
with and without GradScaler's part and the passes around the update, and so are the kernels of the
norm; of compact formats the main combinations. What comes out is read: accesses in the assembly,
registers and spills as the assembler has counted them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fastopt import _core
from fastopt.backends.triton import missing

HELP = "compile every Triton kernel for every GPU target and check its code; needs no GPU"

# One case in so many; prime to the number of dtypes and kinds, so that all of those occur.
QUICK = 31
ITEM_BYTES = {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2, "u8": 1}
DTYPES = ["fp32", "fp64", "bf16", "fp16"]
# Parameter, gradient, states: as in mixed-precision training.
MIXED = ["bf16-bf16-fp32", "fp32-bf16-fp32"]
# In compact formats: of parameter and gradient, how the parameter is stored, bits of its states.
COMPACT = {
    "fp32, 8": ("fp32", None, 8),
    "fp32, 16": ("fp32", None, 16),
    "split8, 8": ("bf16", "split8", 8),
    "split16, 16": ("bf16", "split16", 16),
    "bf16 by noise, 8": ("bf16", "bfloat16", 8),
    "rest16, 8": ("fp16", "rest16", 8),
}
RESTS = {"split16": 2, "split8": 1, "rest16": 2, "rest8": 1}
NOISY = ("bfloat16", "split8")  # of parameters


@dataclass(frozen=True)
class Target:
    """A GPU to compile for; bandwidth (bytes/s) and processors are its data sheet's."""

    name: str
    backend: str
    arch: Any
    warp: int
    bandwidth: float
    processors: int

    @property
    def bytes_needed(self) -> float:
        """Bytes that one processor must have under way to keep its share of the memory busy."""
        from fastopt.backends.triton.tiles import bytes_needed

        return bytes_needed(self.bandwidth, self.processors)

    def threads(self, registers: int, block_threads: int) -> int:
        """Threads resident on one processor at so many registers a thread."""
        registers = max(8, -(-registers // 8) * 8)
        if self.backend == "hip":  # 4 SIMDs of 512 registers a lane, at most 8 waves each
            return 4 * min(8, 512 // registers) * self.warp
        return min(2048, block_threads * min(32, 65536 // (registers * block_threads)))


TARGETS = [
    Target("sm_80", "cuda", 80, 32, 2.04e12, 108),
    Target("sm_90", "cuda", 90, 32, 3.35e12, 132),
    Target("sm_100", "cuda", 100, 32, 8.0e12, 148),
    Target("gfx942", "hip", "gfx942", 64, 5.3e12, 304),
]


@dataclass(frozen=True)
class Case:
    """One kernel to compile: beside its rule it has GradScaler's part, or not, and passes."""

    target: Target
    rule: str
    variant: int
    dtype: str
    scaler: int = 0
    passes: tuple[str, ...] = ()

    @property
    def states(self) -> int:
        return 0 if self.rule == NORM else len(_core.variants(self.rule)[self.variant])

    @property
    def sums_up(self) -> bool:
        return "TRACKS" in self.passes or MEASURES in self.passes

    @property
    def streams(self) -> list[str]:
        """The dtypes of parameter, gradient, states, average; of the norm, the gradient's."""
        average = "AVERAGES" in self.passes
        if self.rule == NORM:
            return [self.dtype]
        if self.dtype in COMPACT:
            param, _, bits = COMPACT[self.dtype]
            state = {8: "u8", 16: "bf16"}[bits]
            return [param, param, *[state] * self.states, *[param] * average]
        param, grad, state = (self.dtype.split("-") * 3)[:3]
        return [param, grad, *[state] * (self.states + average)]

    @property
    def stored(self) -> tuple[Any, ...] | None:
        """Likewise their formats, as the compiled core would say them."""
        if self.dtype not in COMPACT:
            return None
        _, weight, bits = COMPACT[self.dtype]
        found: list[Any] = [
            weight and (weight, "weight" if weight in NOISY else "nearest", 0),
            None,
        ]
        for kind in _core.variants(self.rule)[self.variant].values():
            rounds = "nearest" if kind == "maximum" else kind
            byte = "signed8" if kind == "signed" else "positive8"
            found.append((byte if bits == 8 else "bfloat16", rounds, 0))
        return (*found, *[None] * ("AVERAGES" in self.passes))

    @property
    def rests(self) -> list[int]:
        """Bytes an element of second planes, but for scales."""
        return [RESTS[stored[0]] for stored in self.stored or () if stored and stored[0] in RESTS]

    def __str__(self) -> str:
        about = f"{self.target.name} {self.rule} variant {self.variant} {self.dtype}"
        return f"{about}, scaler {self.scaler}, passes {', '.join(self.passes) or 'none'}"


PASSES = ("PREPARES", "AVERAGES", "CLEARS", "TRACKS")
KINDS: list[tuple[int, tuple[str, ...]]] = [(0, ()), (2, ()), (2, PASSES[:3]), (2, PASSES)]
MEASURES = "MEASURES"  # what a rule waits for, in place of its update: nothing is written
NORM = "norm"  # in place of a rule: the kernel that sums the squares of a gradient's blocks


@dataclass
class Code:
    """What was found in a compiled kernel; `faults` is empty where all is well."""

    case: Case
    registers: int = 0
    in_flight: float = 0.0
    faults: list[str] = field(default_factory=list)


def cases(targets: list[Target]) -> list[Case]:
    """Every rule, variant, dtype and kind for these targets; then the norm."""
    variants = [(rule, v) for rule in _core.rules() for v in range(len(_core.variants(rule)))]
    updates = [
        Case(target, rule, variant, dtype, *kind)
        for target, (rule, variant), dtype, kind in product(
            targets, variants, [*DTYPES, *MIXED], KINDS
        )
    ]
    for target, (rule, variant), dtype in product(targets, variants, [*DTYPES, *MIXED]):
        if _core.waits_for_norms(rule):
            updates += [Case(target, rule, variant, dtype, 2, ("PREPARES", MEASURES))]
    for target, (rule, variant) in product(targets, [("adam", 0), ("lion", 0), ("sgd", 1)]):
        updates += [Case(target, rule, variant, dtype) for dtype in COMPACT]
    for target in targets:
        around = product(["fp32, 8", "split8, 8"], KINDS[1:])
        updates += [Case(target, "adam", 0, dtype, *kind) for dtype, kind in around]
        updates += [Case(target, "adam", 1, "fp32, 8"), Case(target, "sgd", 0, "split8, 8")]
    return updates + [Case(target, NORM, 0, dtype) for target, dtype in product(targets, DTYPES)]


def compile_case(case: Case) -> Any:
    """The compiled kernel, exactly as a launch would ask for it."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastopt.backends.triton import kernel, norm, tiles
    from fastopt.backends.triton.calls import options
    from fastopt.backends.triton.passes import Switches
    from fastopt.backends.triton.rules import RULES

    elements = {"fp32": tl.float32, "fp64": tl.float64, "bf16": tl.bfloat16, "fp16": tl.float16}
    elements |= {"u8": tl.uint8}
    compute = "fp64" if "fp64" in case.dtype else "fp32"
    target, item_bytes = case.target, [ITEM_BYTES[dtype] for dtype in case.streams]
    constants: dict[str, Any] = {"COMPUTE": elements[compute]}
    types = dict.fromkeys(["blocks", "rows", "grads"], "*i64")
    if case.rule == NORM:
        function = norm.square_sums
        shape = options(target.backend, tiles.NORM_WARPS)
        constants |= {"WIDTH": 4, "DTYPE": elements[case.dtype]}
        constants |= tiles.norm_lanes(item_bytes[0], target.warp)
        types |= {"first_sums": "*i64", "sums": "*fp64", "nonfinite": "*i32"}
    else:
        function = kernel.multi_tensor
        switches = Switches(*(name in case.passes for name in Switches._fields))
        compact = case.stored is not None
        measures = MEASURES in case.passes
        compiled_for = tiles.Target(target.backend, target.warp, target.bytes_needed)
        shape = tiles.shape(item_bytes, sum(case.rests), case.sums_up, compact, compiled_for)
        constants |= {
            "RULE": RULES[case.rule].measured if measures else RULES[case.rule].update,
            MEASURES: measures,
            "VARIANT": case.variant,
            "STATES": case.states,
            "SCALARS": len(_core.scalar_names(case.rule)),
            "DTYPES": tuple(elements[dtype] for dtype in case.streams),
            "STORED": case.stored,
            "SCALER": case.scaler,
            **switches._asdict(),
            **tiles.lanes(item_bytes, target.warp, compact),
        }
        scalar = "fp64" if _core.waits_for_norms(case.rule) else compute
        types |= {"scalars": f"*{scalar}", "keys": "*i64"}
        types |= {"found_inf": "*fp32", "grad_scale": "*fp32"}
        if not compact:
            constants["keys"] = None
        tables = {"groups": "*i32", "numbers": "*fp64", "factors": "*fp64", "begins": "*i32"}
        tables |= {"sums": "*fp64"}
        if not case.passes:  # as a launch leaves them out
            constants |= dict.fromkeys(tables)
        elif not case.sums_up:
            constants["sums"] = None
        types |= tables
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    return triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants),
        target=GPUTarget(target.backend, target.arch, target.warp),
        options=shape,
    )


def cuda_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL, ... of the kernel, as cuobjdump from Triton's wheel prints them."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}


# Accesses by their bytes; narrower ones look like those of tables.
CUDA_ACCESSES = {
    16: r"{}\.global[\w.]*\.v(?:4\.[bf]32|2\.[bf]64)",
    8: r"{}\.global[\w.]*\.v2\.[bf]32",
}
HIP_ACCESSES = {16: "(?:global|buffer)_{}_dwordx4", 8: "(?:global|buffer)_{}_dwordx2"}
# Approximate or flushing instructions, and arithmetic without `.rn`, which ptxas may contract.
CUDA_INEXACT = r"\b(?:(?:add|sub|mul|fma|div|sqrt)\.(?!rn\.f)[\w.]*f(?:32|64)|rcp\.\w+|\S+\.ftz\S*)"
# Flags by which LLVM may contract or approximate.
HIP_INEXACT = r"= f\w+ (?:fast|contract|afn|arcp|reassoc)\b"
# The registers, and the spills, from the metadata at the end of the assembly.
HIP_REGISTERS = r"\.vgpr_count:\s+(\d+)"
HIP_SPILLS = r"\.(?:vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)"


def inspect(case: Case) -> Code:
    """Compile a case and check all that is promised of its code."""
    from fastopt.backends.triton import tiles

    compiled = compile_case(case)
    code = Code(case)
    if case.target.backend == "cuda":
        text, usage = compiled.asm["ptx"], cuda_usage(compiled.asm["cubin"])
        code.registers, spilled = usage["REG"], usage["STACK"] + usage["LOCAL"]
        accesses, load, store, barrier = CUDA_ACCESSES, "ld", "st", "bar.sync"
        inexact = re.findall(CUDA_INEXACT, text)
    else:
        text = compiled.asm["amdgcn"]
        accesses, load, store, barrier = HIP_ACCESSES, "load", "store", "s_barrier"
        code.registers = int(re.findall(HIP_REGISTERS, text)[-1])
        spilled = sum(map(int, re.findall(HIP_SPILLS, text)))
        inexact = re.findall(HIP_INEXACT, compiled.asm["llir"])
    sizes = [ITEM_BYTES[dtype] for dtype in case.streams]
    if case.rule == NORM:  # a copy for aligned, whole blocks; the other takes single elements
        threads, copies, written = tiles.NORM_WARPS * case.target.warp, 1, []
        elements, vector = tiles.NORM_BYTES // threads // sizes[0], 16 // sizes[0]
    else:  # full blocks, and but for compact ones the tail's whole vectors: a copy of every access
        compact = case.stored is not None
        tile = tiles.tile_for(sizes, compact)
        lanes = tiles.lanes(sizes, case.target.warp, compact)
        threads, copies = tile.warps * case.target.warp, 1 if compact else 2
        elements, vector = lanes["BLOCK"] // threads, lanes["VECTOR"]
        writes_grad = case.scaler == 2 or "CLEARS" in case.passes
        written = (sizes if writes_grad else [sizes[0], *sizes[2:]]) + case.rests
        sizes = sizes + case.rests
        if MEASURES in case.passes:  # which may not look at the states
            sizes, written = sizes[:2], []
    for (what, name, streams), width in product(
        (("loads", load, sizes), ("stores", store, written)),
        sorted(accesses.keys() & {size * vector for size in sizes}),
    ):
        found = len(re.findall(accesses[width].format(name), text))
        expected = copies * elements // vector * [size * vector for size in streams].count(width)
        # Passes read rows of numbers and store sums, some of them as vectors.
        if found < expected or (found > expected and not case.passes):
            code.faults.append(f"{found} {what} of {8 * width} bits, expected {expected}")
    under_way = case.target.threads(code.registers, threads) * elements * sum(sizes)
    code.in_flight = under_way / case.target.bytes_needed
    if spilled:
        code.faults.append(f"{spilled} bytes or registers spilled")
    if inexact:
        code.faults.append(f"inexact arithmetic: {sorted(set(inexact))}")
    if not case.sums_up:  # whose sums need registers and go through shared memory
        if code.in_flight < (1 if case.stored is None else tiles.COMPACT_PART):
            code.faults.append(
                f"{code.registers} registers keep only {code.in_flight:.0%} under way"
            )
        if barriers := text.count(barrier):
            code.faults.append(f"{barriers} barriers: a layout conversion through shared memory")
    return code


LEGEND = """
- registers: bare / GradScaler's part / and passes but statistics / and all
- bytes under way over bytes needed, the least of them
- ok: all accesses 128 bits wide, or as many elements of a narrower stream beside others; nothing
  spilled, arithmetic correctly rounded; but for statistics: no barriers, bytes needed under way
"""


def table(codes: list[Code]) -> pd.DataFrame:
    """One line a rule, variant and dtype; what its kinds have in common under each target."""

    def cell(found: pd.Series) -> str:
        registers = " / ".join(str(code.registers) for code in found)
        under_way = min(code.in_flight for code in found)
        verdict = "**FAULT**" if any(code.faults for code in found) else "ok"
        return f"{registers}, {under_way:.1f}x {verdict}"

    index = ["rule", "variant", "states", "dtype"]
    keys = [{name: getattr(code.case, name) for name in (*index, "target")} for code in codes]
    tidy = pd.DataFrame(keys).assign(code=codes)
    tidy["target"] = [code.case.target.name for code in codes]
    cells = tidy.pivot_table("code", index, "target", cell, sort=False).fillna("")
    return cells.reset_index().astype(str)


def native() -> str:
    """The target that this machine's GPU is; ends the program where that is none."""
    if not torch.cuda.is_available():
        raise SystemExit("--target native needs a GPU: torch.cuda.is_available() is False")
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = f"sm_{about.major}{about.minor}"
    if torch.version.hip:
        name = about.gcnArchName.partition(":")[0]
    known = [target.name for target in TARGETS]
    if name not in known:
        raise SystemExit(
            f"no target for {about.name}, {name}: add its data sheet's, beside {known}"
        )
    return name


def main() -> int:
    """Print the table; 1 if any kernel is not as it must be."""
    parser = argparse.ArgumentParser(description=HELP)
    names = [target.name for target in TARGETS]
    targets = "native: this machine's GPU; default: all of them"
    parser.add_argument("--target", action="append", choices=["native", *names], help=targets)
    parser.add_argument("--quick", action="store_true", help="one case in thirty-one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    if missing() or os.environ.get("TRITON_INTERPRET") == "1":
        print(f"codegen needs Triton, not interpreted: {missing() or 'unset TRITON_INTERPRET'}")
        return 1
    chosen = [native() if name == "native" else name for name in arguments.target or names]
    todo = cases([t for t in TARGETS if t.name in chosen])
    todo = todo[:: QUICK if arguments.quick else 1]
    if arguments.jobs <= 1:
        codes = [inspect(case) for case in todo]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            codes = list(pool.map(inspect, todo, chunksize=8))
    print(table(codes).to_markdown(index=False, disable_numparse=True) + "\n" + LEGEND)
    bad = [code for code in codes if code.faults]
    for code in bad:
        print(f"{code.case}: {'; '.join(code.faults)}")
    print(f"{len(codes)} kernels, {len(bad)} with faults")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
