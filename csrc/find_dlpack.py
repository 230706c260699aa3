"""Print the path of a dlpack.h new enough for the C exchange API, without importing its owner."""

import importlib.util
import pathlib
import sys

CANDIDATES = [("tvm_ffi", "include/dlpack/dlpack.h"), ("torch", "include/ATen/dlpack.h")]

for package, header in CANDIDATES:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        continue
    path = pathlib.Path(spec.origin).parent / header
    if path.is_file() and "DLPackExchangeAPI" in path.read_text():
        print(path)
        sys.exit(0)
sys.exit("no dlpack.h with DLPackExchangeAPI: install apache-tvm-ffi, or torch >= 2.10")
