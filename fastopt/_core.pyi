"""Types of the compiled core (csrc/module.cpp)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

compiler: str
dtypes: list[str]

class Refused(RuntimeError): ...

class Plan:
    def __init__(
        self,
        rule: str,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, Any],
        engine: bytes,
        first: bytes,
    ) -> None: ...
    def step(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, Any],
        threads: int,
        grad_scale: float | None = None,
        before: Callable[[], None] | None = None,
    ) -> tuple[int, str] | None: ...

class Containers:
    def __init__(
        self,
        rule: str,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, Any],
        idle: bytes,
    ) -> None: ...
    def check(
        self, groups: list[dict[str, Any]], state: Mapping[Tensor, Any]
    ) -> tuple[int, str] | None: ...

class Collector:
    def __init__(
        self,
        rule: str,
        slots: list[tuple[Any, ...]],
        unscales: bool,
        grads: NDArray[np.int64],
        scalars: NDArray[Any] | None = None,
        hyper: NDArray[np.float64] | None = None,
        hyper_at: NDArray[np.int64] | None = None,
    ) -> None: ...
    def collect(self, groups: list[dict[str, Any]]) -> tuple[int, str] | None: ...
    def params(self) -> list[Tensor]: ...
    def launched(self) -> None: ...

def rules() -> list[str]: ...
def hyper_names(rule: str) -> list[str]: ...
def counts_steps(rule: str) -> bool: ...
def variants(rule: str) -> list[list[str]]: ...
def scalar_names(rule: str) -> list[str]: ...
def hyperparameters(rule: str, group: dict[str, Any]) -> tuple[list[float], list[int]]: ...
def state_names(rule: str, group: dict[str, Any]) -> list[str]: ...
def scalars(
    rule: str, group: dict[str, Any], step: float, first: bool = False
) -> dict[str, float]: ...
def isa() -> str: ...
def supported_isas() -> list[str]: ...
def select_isa(name: str) -> None: ...
def update(
    rule: str,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    steps: list[Tensor],
    first: bytes,
    hyper: list[float],
    maximize: bool,
    grad_scale: float | None,
    threads: int,
) -> None: ...
def stream(reads: list[Tensor], updates: list[Tensor], threads: int) -> None: ...
def read_tensors(tensors: list[Tensor]) -> int: ...
def read_grads(params: list[Tensor]) -> int: ...
def useful_threads(count: int, threads: int) -> int: ...
def widen(dtype: str, values: NDArray[np.uint16]) -> NDArray[np.float32]: ...
def narrow(dtype: str, values: NDArray[np.float32]) -> NDArray[np.uint16]: ...
