"""What the Triton kernel compiles to, without a GPU: targets, cases, compiling, checks, table.

Every rule, variant and dtype is compiled for every target, with and without GradScaler's part and
the passes around the update, and so are the kernels of the norm. What comes out is read: accesses
in the assembly, registers and spills as the assembler counts them.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HELP = "compile every Triton kernel for every GPU target and check its code; needs no GPU"

# One case in so many; prime to the sixteen of dtypes and kinds, so that all of those occur.
QUICK = 13
ITEM_BYTES = {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2}
# From the first byte asked for until it is there, under load: between 0.6 and 0.9 us are published
# for these devices; not measured here.
LATENCY = 1e-6


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
        return self.bandwidth * LATENCY / self.processors

    def threads(self, registers: int, block_threads: int) -> int:
        """Threads resident on one processor at so many registers a thread."""
        registers = max(8, -(-registers // 8) * 8)
        if self.backend == "hip":  # 4 SIMDs of 512 registers a lane, at most 8 waves each
            return 4 * min(8, 512 // registers) * self.warp
        warps = block_threads // self.warp
        return min(2048, 65536 // (registers * self.warp * warps) * block_threads)


TARGETS = [
    Target("sm_80", "cuda", 80, 32, 2.04e12, 108),
    Target("sm_90", "cuda", 90, 32, 3.35e12, 132),
    Target("sm_100", "cuda", 100, 32, 8.0e12, 148),
    Target("gfx942", "hip", "gfx942", 64, 5.3e12, 304),
]


@dataclass(frozen=True)
class Kind:
    """What a kernel does beside its rule: GradScaler's part, then the passes it has."""

    scaler: int = 0
    passes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        return name in self.passes

    def __str__(self) -> str:
        return f"scaler {self.scaler}, passes {', '.join(self.passes) or 'none'}"


ALL_PASSES = ("PREPARES", "AVERAGES", "CLEARS", "TRACKS")
KINDS = [Kind(), Kind(2), Kind(2, ALL_PASSES[:3]), Kind(2, ALL_PASSES)]
NORM = "norm"  # in place of a rule: the kernel that sums the squares of a gradient's blocks


@dataclass(frozen=True)
class Case:
    """One kernel to compile."""

    target: Target
    rule: str
    variant: int
    dtype: str
    kind: Kind = KINDS[0]


@dataclass
class Code:
    """What was found in a compiled kernel; `faults` is empty where all is well."""

    case: Case
    registers: int = 0
    loads: int = 0
    stores: int = 0
    in_flight: float = 0.0
    faults: list[str] = field(default_factory=list)


def cases(targets: list[Target]) -> list[Case]:
    """Every rule, variant, dtype and kind for these targets; then the norm."""
    from fastopt import _core

    updates = [
        Case(target, rule, variant, dtype, kind)
        for target in targets
        for rule in _core.rules()
        for variant, dtype, kind in itertools.product(
            range(len(_core.variants(rule))), ITEM_BYTES, KINDS
        )
    ]
    return updates + [Case(target, NORM, 0, dtype) for target in targets for dtype in ITEM_BYTES]


def state_count(case: Case) -> int:
    from fastopt import _core

    return 0 if case.rule == NORM else len(_core.variants(case.rule)[case.variant])


def compile_case(case: Case) -> Any:
    """The compiled kernel, exactly as a launch would ask for it."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastopt import _core
    from fastopt.backends.triton import bucket, kernel, norm
    from fastopt.backends.triton.calls import options
    from fastopt.backends.triton.passes import Switches
    from fastopt.backends.triton.rules import RULES

    elements = {"fp32": tl.float32, "fp64": tl.float64, "bf16": tl.bfloat16, "fp16": tl.float16}
    compute = "fp64" if case.dtype == "fp64" else "fp32"
    target, item_bytes = case.target, ITEM_BYTES[case.dtype]
    constants: dict[str, Any] = {"DTYPE": elements[case.dtype], "COMPUTE": elements[compute]}
    if case.rule == NORM:
        function, warps, registers = norm.square_sums, bucket.NORM_WARPS, None
        constants |= {"WIDTH": 4, **bucket.norm_lanes(item_bytes, target.warp)}
        types = {"blocks": "*i64", "rows": "*i64", "grads": "*i64", "first_sums": "*i64"}
        types |= {"sums": "*fp64", "nonfinite": "*i32"}
    else:
        function = kernel.multi_tensor
        switches = Switches(*map(case.kind.has, Switches._fields))
        tile = bucket.tile_for(item_bytes, switches)
        warps, registers = tile.warps, tile.registers
        constants |= {
            "RULE": RULES[case.rule].update,
            "VARIANT": case.variant,
            "STATES": state_count(case),
            "SCALARS": len(_core.scalar_names(case.rule)),
            "SCALER": case.kind.scaler,
            **switches._asdict(),
            **bucket.lanes(item_bytes, target.warp),
        }
        types = {"blocks": "*i64", "rows": "*i64", "grads": "*i64", "scalars": f"*{compute}"}
        types |= {"found_inf": "*fp32", "grad_scale": "*fp32"}
        tables = {"groups": "*i32", "numbers": "*fp64", "factors": "*fp64", "begins": "*i32"}
        tables |= {"sums": "*fp64"}
        if not case.kind.passes:  # as a launch leaves them out
            constants |= dict.fromkeys(tables)
        elif not case.kind.has("TRACKS"):
            constants["sums"] = None
        types |= tables
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    return triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants),
        target=GPUTarget(target.backend, target.arch, target.warp),
        options=options(target.backend, warps, registers),
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


def hip_usage(assembly: str) -> dict[str, int]:
    """Registers and spills from the metadata at the end of the assembly."""
    names = "vgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size"
    return {name: int(value) for name, value in re.findall(rf"\.({names}):\s+(\d+)", assembly)}


# Approximate or flushing instructions, and arithmetic without `.rn`, which ptxas may contract.
CUDA_INEXACT = r"\b(?:(?:add|sub|mul|fma|div|sqrt)\.(?!rn\.f)[\w.]*f(?:32|64)|rcp\.\w+|\S+\.ftz\S*)"
# Flags by which LLVM may contract or approximate.
HIP_INEXACT = r"= f\w+ (?:fast|contract|afn|arcp|reassoc)\b"


def inspect(case: Case) -> Code:
    """Compile a case and check all that is promised of its code."""
    from fastopt.backends.triton import bucket

    compiled = compile_case(case)
    code = Code(case)
    if case.target.backend == "cuda":
        text, usage = compiled.asm["ptx"], cuda_usage(compiled.asm["cubin"])
        code.registers = usage["REG"]
        spilled = usage["STACK"] + usage["LOCAL"]
        code.loads = len(re.findall(r"ld\.global[\w.]*\.v(?:4\.[bf]32|2\.[bf]64)", text))
        code.stores = len(re.findall(r"st\.global[\w.]*\.v(?:4\.[bf]32|2\.[bf]64)", text))
        inexact = re.findall(CUDA_INEXACT, text)
        barriers = text.count("bar.sync")
    else:
        text, ir = compiled.asm["amdgcn"], compiled.asm["llir"]
        usage = hip_usage(text)
        code.registers = usage["vgpr_count"]
        spilled = usage["vgpr_spill_count"] + usage["sgpr_spill_count"]
        spilled += usage["private_segment_fixed_size"]
        code.loads = len(re.findall(r"(?:global|buffer)_load_dwordx4", text))
        code.stores = len(re.findall(r"(?:global|buffer)_store_dwordx4", text))
        inexact = re.findall(HIP_INEXACT, ir)
        barriers = text.count("s_barrier")
    kind, item_bytes = case.kind, ITEM_BYTES[case.dtype]
    if case.rule == NORM:  # a copy for aligned, whole blocks; the other takes single elements
        warps, thread_bytes = bucket.NORM_WARPS, bucket.NORM_BYTES // case.target.warp
        streams, written, copies = 1, 0, 1
    else:  # full blocks and the tail's whole vectors: two copies of every access
        warps, thread_bytes = bucket.TILES[item_bytes].warps, bucket.TILES[item_bytes].thread_bytes
        streams = 2 + state_count(case) + kind.has("AVERAGES")
        written = streams - 1 + (kind.scaler == 2 or kind.has("CLEARS"))
        copies = 2
    per_stream = copies * thread_bytes // 16
    tracks = kind.has("TRACKS")
    for what, found, expected in (
        ("loads", code.loads, streams * per_stream),
        ("stores", code.stores, written * per_stream),
    ):
        # Passes read rows of numbers and store sums, some of them as vectors.
        if found < expected or (found > expected and not kind.passes):
            code.faults.append(f"{found} {what} of 128 bits, expected {expected}")
    threads = case.target.threads(code.registers, warps * case.target.warp)
    code.in_flight = threads * thread_bytes * streams / case.target.bytes_needed
    if spilled:
        code.faults.append(f"{spilled} bytes or registers spilled")
    if code.in_flight < 1 and not tracks:  # the sums need registers
        code.faults.append(f"{code.registers} registers keep only {code.in_flight:.0%} under way")
    if inexact:
        code.faults.append(f"inexact arithmetic: {sorted(set(inexact))}")
    if barriers and not tracks:  # sums over a block go through shared memory
        code.faults.append(f"{barriers} barriers: a layout conversion through shared memory")
    return code


def table(codes: list[Code]) -> Any:
    """One line a rule, variant and dtype; registers without / with GradScaler under each target."""
    from rich.table import Table

    targets = list(dict.fromkeys(code.case.target.name for code in codes))
    shown = Table(
        title="Triton codegen, no GPU involved",
        caption="registers: bare / GradScaler's part / and passes but statistics / and all\n"
        "bytes under way over bytes needed, the least of them\n"
        "ok: all accesses 128 bits wide, nothing spilled, arithmetic correctly rounded;\n"
        "but for statistics: no barriers, bytes needed under way",
        caption_justify="left",
        box=None,
    )
    for name in ("rule", "states", "dtype", *targets):
        shown.add_column(name)
    rows: dict[tuple[str, int, str], dict[str, list[Code]]] = {}
    for code in codes:
        case = code.case
        row = rows.setdefault((case.rule, case.variant, case.dtype), {})
        row.setdefault(case.target.name, []).append(code)
    for (rule, _, dtype), row in rows.items():
        cells = []
        for name in targets:
            found = row.get(name, [])
            if not found:
                cells.append("")
                continue
            registers = " / ".join(str(code.registers) for code in found)
            under_way = min(code.in_flight for code in found)
            bad = any(code.faults for code in found)
            verdict = "[red]FAULT[/red]" if bad else "[green]ok[/green]"
            cells.append(f"{registers:>17}  {under_way:4.1f}x {verdict}")
        states = str(state_count(next(iter(row.values()))[0].case))
        shown.add_row(rule, states, dtype, *cells)
    return shown


def run(targets: list[Target], jobs: int, every: int = 1) -> list[Code]:
    """Inspect one in `every` cases of these targets, in `jobs` processes."""
    todo = cases(targets)
    todo = todo[::every]
    if jobs <= 1:
        return [inspect(case) for case in todo]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        return list(pool.map(inspect, todo, chunksize=8))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `codegen`."""
    names = [target.name for target in TARGETS]
    parser.add_argument("--target", action="append", choices=names, help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="one case in thirteen")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")


def main(arguments: argparse.Namespace) -> int:
    """Print the table; 1 if any kernel is not as it must be."""
    from rich.console import Console

    from fastopt.backends.triton import missing

    console = Console()
    if missing():
        console.print(f"codegen needs Triton: {missing()}")
        return 1
    if os.environ.get("TRITON_INTERPRET") == "1":
        console.print("codegen compiles: unset TRITON_INTERPRET")
        return 1
    targets = [t for t in TARGETS if t.name in (arguments.target or t.name)]
    codes = run(targets, arguments.jobs, QUICK if arguments.quick else 1)
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table(codes))
    bad = [code for code in codes if code.faults]
    for code in bad:
        case = code.case
        what = f"{case.target.name} {case.rule} variant {case.variant} {case.dtype}"
        console.print(f"{what}, {case.kind}: {'; '.join(code.faults)}", highlight=False)
    console.print(f"{len(codes)} kernels, {len(bad)} with faults")
    return 1 if bad else 0
