"""Types of the compiled core (csrc/module.cpp)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .stepping import Outcome

compiler: str
dtypes: list[str]

class Refused(RuntimeError): ...

# Of a parameter's streams, each (format, rounds, word), or None where its dtype says all.
Formats = tuple[tuple[str, str, int] | None, ...]

def bind_shards(dtensor: type[Tensor]) -> None: ...
def memory_of(object: object) -> Tensor | None: ...

class Rows:
    def __init__(
        self,
        rule: str,
        params: list[tuple[int, int, tuple[int, ...], int]],
        grads: NDArray[np.int64],
        scalars: NDArray[Any] | None = None,
        hyper: NDArray[np.float64] | None = None,
        hyper_at: NDArray[np.int64] | None = None,
        keys: NDArray[np.int64] | None = None,
        seeds: NDArray[np.int64] | None = None,
        begins: NDArray[np.int32] | None = None,
    ) -> None: ...

class Shard:
    def __init__(self, first: int, run: int, stride: int, team: int) -> None: ...

class Plan:
    def __init__(
        self,
        rule: str,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, Any],
        backends: list[str],
        first: bytes,
        begins: bytes,
        rows: list[Rows] = ...,
        passes: NDArray[np.float64] | None = None,
        shards: list[Shard] = ...,
    ) -> None: ...
    def layers(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, Any],
        grad_scale: float | None = None,
    ) -> tuple[tuple[int, str] | None, list[tuple[int, Formats | None]]]: ...
    def step(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, Any],
        threads: int,
        grad_scale: float | None = None,
        check: Callable[[], Outcome] | None = None,
        agree: Callable[[list[float], bool], tuple[float, bool]] | None = None,
        agree_tensors: Callable[[list[int], NDArray[np.float64]], NDArray[np.float64]]
        | None = None,
        rest: Callable[[], None] | None = None,
        launch: Callable[[], None] | None = None,
    ) -> Outcome: ...
    @property
    def grad_norm(self) -> float | None: ...
    def stats(self) -> list[tuple[int, float, float, float]]: ...

def rules() -> list[str]: ...
def hyper(rule: str) -> dict[str, int]: ...
def carried(
    rule: str, group: dict[str, Any] | None = None, waits: bool = False
) -> list[tuple[str, float]]: ...
def variants(rule: str) -> list[dict[str, str]]: ...
def kinds(rule: str, group: dict[str, Any]) -> dict[str, str]: ...
def scalar_names(rule: str) -> list[str]: ...
def hyperparameters(rule: str, group: dict[str, Any]) -> tuple[list[float], list[int]]: ...
def takes_sparse(rule: str) -> bool: ...
def waits_for_norms(rule: str) -> bool: ...
def states(
    rule: str, group: dict[str, Any], waits: bool = False
) -> list[tuple[str, float | str | None]]: ...
def scalars(
    rule: str, group: dict[str, Any], carried: list[float], first: bool = False
) -> tuple[dict[str, float], list[float]]: ...
def isa() -> str: ...
def supported_isas() -> list[str]: ...
def select_isa(name: str) -> None: ...
def update(
    rule: str,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    carried: list[list[Tensor]],
    seconds: dict[int, list[Tensor | None]],
    first: bytes,
    group: dict[str, Any],
    maximize: bool,
    grad_scale: float | None,
    threads: int,
) -> None: ...
def adafactor(
    params: list[Tensor],
    grads: list[Tensor],
    rows: list[Tensor],
    cols: list[Tensor | None],
    steps: list[Tensor],
    groups: list[tuple[float, float, float, float, float, float, bool]],
    group_of: list[int],
    first: Callable[[], None] | None,
    threads: int,
) -> bool | tuple[int, str]: ...
def share_memory(written: list[Tensor], read_only: list[Tensor]) -> bool: ...
def stream(reads: list[Tensor], updates: list[Tensor], threads: int) -> None: ...
def read_tensors(tensors: list[Tensor]) -> int: ...
def read_grads(params: list[Tensor]) -> int: ...
def useful_threads(count: int, threads: int) -> int: ...
def widen(dtype: str, values: NDArray[np.uint16]) -> NDArray[np.float32]: ...
def narrow(dtype: str, values: NDArray[np.float32]) -> NDArray[np.uint16]: ...
def decode(
    format: str, first: NDArray[np.uint8], second: NDArray[np.uint8], count: int
) -> NDArray[np.float32]: ...
def encode(
    format: str, rounds: str, numbers: NDArray[np.float32], words: NDArray[np.uint32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]: ...
def noise(
    seed: int, step: int, parameter: int, word: int, element: int, count: int
) -> NDArray[np.uint32]: ...
def square_sums(values: NDArray[np.float32]) -> NDArray[np.float64]: ...
