"""`python -m fastopt`: what was detected and chosen on this machine."""

import platform

import torch

import fastopt
from fastopt import _core, declared, memory, openmp, optim
from fastopt.backends.triton import missing
from fastopt.routes import BACKENDS, backend_setting

BESIDE = ("weights", "gradients", "numbers")


def main() -> None:
    print(f"fastopt {fastopt.__version__}, core built with {_core.compiler}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    supported = ", ".join(_core.supported_isas())
    print(f"instruction set: {_core.isa()} (this processor can run: {supported}; FASTOPT_ISA)")
    print(f"threads: {torch.get_num_threads()} (torch.set_num_threads)")
    print(*openmp.report(), sep="\n")
    print(f"backend: {backend_setting()} (one of {', '.join(BACKENDS)}; FASTOPT_BACKEND)")
    print(f"triton: {missing() or 'installed, imported when a GPU tensor asks for it'}")
    print("optimizers, with the bytes a parameter of their states by state_bits:")
    with torch.device("meta"):
        matrix = torch.empty(64, 64, requires_grad=True)
    for cls in optim.CLASSES:
        if cls._rule in declared.WHOLE:
            found = memory([matrix], cls)
            states = [kind for kind in found.bytes if kind not in BESIDE]
            size = sum(found.bytes[state] for state in states) / found.elements
            print(f"{cls.__name__}: {', '.join(states)}, {size:.2f} for a matrix of 64x64")
            continue
        weighed = {bits: memory([matrix], cls, state_bits=bits) for bits in (32, 16, 8)}
        states = [kind for kind in weighed[32].bytes if kind not in BESIDE]
        more = declared.states(cls._rule) - {*states}
        sizes = (
            f"{bits} bits {sum(m.bytes[state] for state in states) / m.elements:.2f}"
            for bits, m in weighed.items()
        )
        options = f" (options add {', '.join(sorted(more))})" * bool(more)
        line = ", ".join([*states, *sizes] if states else ["no states"])
        print(f"{cls.__name__}: {line}{options}")


if __name__ == "__main__":
    main()
