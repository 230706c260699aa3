"""Stable-Baselines3: our classes as a policy's `optimizer_class`, saving and going on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alike import assert_alike, assert_on_engine, torchs

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sb3 = pytest.importorskip("stable_baselines3")
    import gymnasium

pytestmark = pytest.mark.filterwarnings("ignore")


class Line(gymnasium.Env):  # type: ignore[misc]
    """Walk to 0: the observation is where one stands, of the action's sign is the step."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.left = float(self.np_random.integers(-5, 6)), 20
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.place = float(np.clip(self.place + action[0], -9, 9))
        self.left -= 1
        return self._seen(), -abs(self.place), False, self.left == 0, {}

    def _seen(self) -> Any:
        return np.array([self.place], np.float32)


# Each clips by itself, by its own max_grad_norm, but for SAC and TD3.
CHOICES = {
    "ppo": (sb3.PPO, fastopt.Adam, {"n_steps": 32, "batch_size": 16, "n_epochs": 2}),
    "a2c": (sb3.A2C, fastopt.RMSprop, {"n_steps": 16}),
    "sac": (sb3.SAC, fastopt.AdamW, {"learning_starts": 8, "batch_size": 8}),
    "td3": (sb3.TD3, fastopt.SGD, {"learning_starts": 8, "batch_size": 8}),
}


def made(choice: str, cls: Any) -> Any:
    algorithm, _, options = CHOICES[choice]
    policy = {"net_arch": [8]} | ({"optimizer_class": cls} if cls else {})
    if choice == "ppo" and cls:  # which torch's Adam itself is given if nothing is asked for
        policy["optimizer_kwargs"] = {"eps": 1e-5}
    return algorithm("MlpPolicy", Line(), policy_kwargs=policy, seed=0, device="cpu", **options)


def optimizers_of(model: Any) -> list[Any]:
    parts = [getattr(model, name, None) for name in ("policy", "actor", "critic")]
    return [part.optimizer for part in parts if hasattr(part, "optimizer")]


def params_of(model: Any) -> list[Any]:
    groups = [group for each in optimizers_of(model) for group in each.param_groups]
    return [p for group in groups for p in group["params"]]


@pytest.mark.parametrize("choice", CHOICES)
def test_learning(choice: str) -> None:
    cls = CHOICES[choice][1]
    models = [made(choice, each).learn(64) for each in (cls, torchs(cls))]
    optimizers = optimizers_of(models[0])
    assert len(optimizers) == (1 if choice in ("ppo", "a2c") else 2)
    for optimizer in optimizers:
        assert_on_engine(optimizer, cls.__name__)
    assert_alike(*map(params_of, [*models, made(choice, cls)]), tolerance=1e-4)


def test_patch() -> None:
    """The class it takes by itself, and the eps it gives that one."""
    theirs = made("ppo", None).learn(64)
    with fastopt.patch():
        ours = made("ppo", None).learn(64)
    assert_on_engine(ours.policy.optimizer, "Adam")
    assert ours.policy.optimizer.defaults["eps"] == 1e-5
    assert_alike(*map(params_of, (ours, theirs, made("ppo", None))), tolerance=1e-4)


def test_saving(tmp_path: Path) -> None:
    """The optimizer's state goes with the model's."""
    model = made("ppo", fastopt.Adam).learn(64)
    model.save(tmp_path / "model")
    loaded = sb3.PPO.load(tmp_path / "model", env=Line(), device="cpu")
    assert type(loaded.policy.optimizer) is fastopt.Adam
    states = [m.policy.optimizer.state_dict()["state"] for m in (model, loaded)]
    assert len(states[0]) > 0
    torch.testing.assert_close(*states, rtol=0, atol=0)
    loaded.learn(64)
