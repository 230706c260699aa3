"""Rules in which something breaks: what is refused or interrupted is whole or untouched."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from memory import Snapshot, parameters, plain
from torch import Tensor
from trial import Trial, Wrong, check_unchanged

import fastopt
from fastopt import _core
from fastopt.arguments import setting

HOME = str(Path(fastopt.__file__).parent)
which = st.integers(0, 8)


class Stop(BaseException):
    """As KeyboardInterrupt: nobody catches it by accident."""


class Raises:
    """A hyperparameter that is asked, as a tensor is, and raises."""

    def item(self) -> float:
        raise ZeroDivisionError("no number")


class Meddles:
    """A hyperparameter that does something while it is asked."""

    def __init__(self, value: Any, what: Callable[[], None]) -> None:
        self.value, self.what = value, what

    def item(self) -> float:
        self.what()
        return float(self.value)


def put_copies(optimizer: torch.optim.Optimizer, params: list[Tensor], what: str) -> None:
    """Copies of states, of the dicts that hold them, or of gradients in their place."""
    for p in params:
        state = optimizer.state.get(p, {})
        if what == "grad":
            p.grad = None if p.grad is None else p.grad.clone()
        elif state:
            copies = {k: v.clone() if plain(v) else v for k, v in list(state.items())}
            if what == "states":
                optimizer.state[p] = copies
            else:
                state.update(copies)


def interrupted(step: Callable[[], Any], lines: int) -> bool:
    """Run it until that many lines of fastopt's have been reached; whether it was cut short.

    An interrupt comes between two lines of Python, so this is any interrupt, and the same one when
    the program is run again.
    """
    left = lines

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


class Hazards(RuleBasedStateMachine):
    """What is asked of the program, then the rules."""

    optimizer: Any

    @property
    def kind(self) -> str:
        return type(self.optimizer).__name__

    @property
    def params(self) -> list[Tensor]:
        return parameters(self.optimizer)

    def param(self, i: int) -> Tensor:
        return self.params[i % len(self.params)]

    def group(self, i: int) -> dict[str, Any]:
        return self.optimizer.param_groups[i % len(self.optimizer.param_groups)]

    def state(self, i: int, k: int) -> tuple[dict[str, Any], str]:
        """A parameter's states and the name of one that is a tensor, "" where there is none."""
        state = self.optimizer.state.get(self.param(i), {})
        names = sorted(name for name, value in state.items() if plain(value) and name != "mine")
        return state, names[k % len(names)] if names else ""

    def must_refuse(self, names: str = "") -> None:
        """The next step is refused, names what is wrong, and changes nothing."""
        snapshot = Snapshot(self.optimizer)
        try:
            self.optimizer.step()
        except Exception as error:
            check_unchanged(snapshot, self.optimizer, error)
            # A gradient that is to be cleared and cannot be is found before any state.
            if names not in str(error) and "its gradient is expanded" not in str(error):
                raise Wrong(f"the error does not name {names}") from error
        else:
            raise Wrong("a step that must be refused was taken")

    def on_engine(self) -> bool:
        """Whether a step would be taken now, and by the engine alone."""
        return Trial(self.optimizer).by_engine and any(p.grad is not None for p in self.params)

    @rule(i=which, betas=st.sampled_from([(0.9,), (0.9, 0.99, 0.5), ()]), as_list=st.booleans())
    def wrong_count_of_betas(self, i: int, betas: tuple[float, ...], as_list: bool) -> None:
        group = self.group(i)
        if "betas" not in group or len(betas) == len(group["betas"]) or not self.on_engine():
            return
        good, group["betas"] = group["betas"], list(betas) if as_list else betas
        self.must_refuse("betas")
        group["betas"] = good

    @rule(
        i=which,
        name=st.sampled_from(["lr", "eps", "weight_decay", "momentum", "alpha"]),
        value=st.sampled_from([None, "0.1", (0.1, 0.2), (), torch.ones(2), Raises()]),
    )
    def no_number(self, i: int, name: str, value: Any) -> None:
        group = self.group(i)
        if name not in group or not self.on_engine():
            return
        good, group[name] = group[name], value
        self.must_refuse()
        group[name] = good

    @rule(
        i=which,
        k=which,
        how=st.sampled_from(["shape", "dtype", "number", "sparse", "meta", "expanded"]),
    )
    def corrupt_state(self, i: int, k: int, how: str) -> None:
        p = self.param(i)
        state = self.optimizer.state.get(p, {})
        group = next(g for g in self.optimizer.param_groups if any(q is p for q in g["params"]))
        update = self.optimizer._rule
        names = [name for name, _ in _core.states(update, group)]
        names += [name for name, _ in _core.carried(update)]
        names += ["ema"] * (setting(group, "ema_decay") is not None)
        name = names[k % len(names)] if names else ""
        good = state.get(name)
        if p.grad is None or not plain(good) or not self.on_engine():
            return
        bad: Any = {
            "shape": lambda: torch.zeros((*good.shape, 2), dtype=good.dtype),
            "dtype": lambda: torch.zeros(good.shape, dtype=torch.int64),
            "number": lambda: 3.0,
            "sparse": lambda: good.to_sparse(),
            "meta": lambda: good.to("meta"),
            "expanded": lambda: torch.zeros((), dtype=good.dtype).expand(good.shape),
        }[how]()
        if how == "expanded" and good.numel() < 2:
            return
        state[name] = bad
        self.must_refuse(name)
        state[name] = good

    @rule(how=st.sampled_from(["fewer groups", "fewer parameters", "no groups"]))
    def load_what_does_not_fit(self, how: str) -> None:
        saved = self.optimizer.state_dict()
        if how == "no groups":
            del saved["param_groups"]
        elif how == "fewer groups":
            saved["param_groups"].pop()
        else:
            saved["param_groups"][0]["params"] = saved["param_groups"][0]["params"][1:]
        snapshot = Snapshot(self.optimizer)
        try:
            self.optimizer.load_state_dict(saved)
        except (ValueError, KeyError) as error:
            check_unchanged(snapshot, self.optimizer, error)
        else:
            raise Wrong("a state dict that does not fit was loaded")

    @rule()
    def backend_that_is_not_here(self) -> None:
        before = os.environ.get("FASTOPT_BACKEND", "auto")
        for value, names in (("triton", "FASTOPT_BACKEND=triton"), ("gpu", "FASTOPT_BACKEND")):
            if not self.on_engine():
                continue
            os.environ["FASTOPT_BACKEND"] = value
            self.must_refuse(names)
            os.environ["FASTOPT_BACKEND"] = before

    @rule(before=st.booleans())
    def hook_raises(self, before: bool) -> None:
        trial = Trial(self.optimizer)

        def hook(*_: Any) -> None:
            raise Stop

        register = "register_step_pre_hook" if before else "register_step_post_hook"
        handle = getattr(self.optimizer, register)(hook)
        try:
            self.optimizer.step()
        except Stop as error:
            check_unchanged(trial.snapshot, self.optimizer, error) if before else trial.judge()
        except Exception as error:
            trial.judge_refusal(error)
        finally:
            handle.remove()

    @rule()
    def closure_raises(self) -> None:
        def closure() -> None:
            raise ZeroDivisionError

        snapshot = Snapshot(self.optimizer)
        try:
            self.optimizer.step(closure)
        except ZeroDivisionError as error:
            check_unchanged(snapshot, self.optimizer, error)

    @rule(lines=st.integers(1, 240))
    def interrupt(self, lines: int) -> None:
        """An interrupted step has been taken, or, taken again, is what it would have been."""
        trial = Trial(self.optimizer)
        if not trial.by_engine or not trial.reference.dense or trial.reference.skipped:
            return
        try:
            cut = interrupted(self.optimizer.step, lines)
        except Exception as error:
            return trial.judge_refusal(error)
        if not cut:
            return trial.judge()
        if not trial.was_taken():
            trial.run(self.optimizer.step)

    @rule()
    def fork(self) -> None:
        """A child process steps, with one thread as a DataLoader's workers have; the parent's
        memory stays.
        """
        trial = Trial(self.optimizer)
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12's, of threads and fork
            child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                trial.run(self.optimizer.step)
            except BaseException as error:
                os.write(writing, repr(error)[:4000].encode())
                os._exit(1)
            os._exit(0)
        status = wait(child, seconds=60)
        os.close(writing)
        with open(reading, encoding="utf-8") as pipe:
            said = pipe.read()
        if status != 0:
            raise Wrong(f"a step in a forked child ended with {status}: {said}")
        check_unchanged(trial.snapshot, self.optimizer, AssertionError())

    @rule(i=which, what=st.sampled_from(["state", "states", "grad"]))
    def replaced_while_read(self, i: int, what: str) -> None:
        """As by another thread, while a group is asked for its `lr`: copies stand in the place of
        tensors that have been found already. The step is right, or refused.
        """
        trial, group, params = Trial(self.optimizer), self.group(i), self.params
        if not (trial.by_engine and trial.apart and trial.reference.dense):
            return
        group["lr"] = Meddles(group["lr"], lambda: put_copies(self.optimizer, params, what))
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if len(str(error)) >= 1000:
                raise Wrong(f"a message of {len(str(error))} characters") from error
        else:
            # A gradient that has been found is the one of this step, whatever takes its place.
            if what != "grad" and not trial.was_taken():
                raise Wrong("; ".join(trial.reference.differences(self.optimizer))[:3000])
        finally:
            group["lr"] = group["lr"].value

    @rule(what=st.sampled_from(["state", "states", "grad"]))
    def another_thread(self, what: str) -> None:
        """Another thread puts copies in the place of states and gradients while steps are taken,
        and each of many groups asks a tensor for its `lr`, which lets that thread run: any numbers
        may come of it, but no crash, and no error but a refusal.
        """
        options = {**self.group(0), "lr": torch.tensor(1e-3)}
        many = [{**options, "params": [torch.ones(5, requires_grad=True)]} for _ in range(20)]
        optimizer, done = type(self.optimizer)(many), threading.Event()
        params = parameters(optimizer)
        for p in params:
            p.grad = torch.ones(5)
        if Trial(optimizer).paths != {"cpu"}:
            return  # torch's own step finds what it finds

        def meddle() -> None:
            while not done.is_set():
                put_copies(optimizer, params, what)

        thread, interval = threading.Thread(target=meddle), sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        thread.start()
        try:
            for _ in range(10):
                try:
                    optimizer.step()
                except RuntimeError as error:
                    if len(str(error)) >= 1000:
                        raise Wrong(f"a message of {len(str(error))} characters") from error
        finally:
            done.set()
            thread.join()
            sys.setswitchinterval(interval)


def wait(child: int, seconds: float) -> int:
    """The status that a child process ends with; killed where it hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM
