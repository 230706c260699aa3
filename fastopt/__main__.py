"""`python -m fastopt`: what was detected and chosen on this machine."""

import platform

import torch

import fastopt
from fastopt import _core, openmp
from fastopt.backends.triton import missing
from fastopt.routes import BACKENDS, backend_setting


def main() -> None:
    print(f"fastopt {fastopt.__version__}, core built with {_core.compiler}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    supported = ", ".join(_core.supported_isas())
    print(f"instruction set: {_core.isa()} (this processor can run: {supported}; FASTOPT_ISA)")
    print(f"threads: {torch.get_num_threads()} (torch.set_num_threads)")
    print(*openmp.report(), sep="\n")
    print(f"backend: {backend_setting()} (one of {', '.join(BACKENDS)}; FASTOPT_BACKEND)")
    print(f"triton: {missing() or 'installed, imported when a GPU tensor asks for it'}")
    print(f"rules: {', '.join(_core.rules())}")


if __name__ == "__main__":
    main()
