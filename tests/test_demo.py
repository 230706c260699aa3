"""The demo: its data and augmentation, its settings, then the whole of it through main()."""

import dataclasses
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kornia", reason="needs the extra: pip install fastopt[demo]")
import matplotlib.image
import torch
from torch.utils.data import TensorDataset

import fastopt
from examples import demo, lr_find, nets, report
from examples.composition import averaged
from examples.data import AUGMENTATIONS, DEFAULT_AUGMENTATIONS, augmented, batches, load_digits
from examples.nets import NETS
from examples.optimizers import LIBRARIES, OPTIMIZERS, SCHEDULES, build
from examples.train import Settings, train_pair

# Max-pooling and two more layers let the convolutional net amplify rounding, as its control shows.
GAPS = {"mlp": 1e-4, "conv": 0.25}


@pytest.fixture(autouse=True)
def torch_untouched() -> Iterator[None]:
    """One thread, for a busy machine; and the demo leaves torch's global generator alone."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return load_digits(seed=0)[0].tensors[0][:64]


def test_digits() -> None:
    train, test = load_digits(seed=0)
    for part, count in ((train, 1437), (test, 360)):
        pictures, labels = part.tensors
        assert pictures.shape == (count, 1, 28, 28)
        assert pictures.dtype == torch.float32
        assert pictures.min() == 0.0
        assert pictures.max() == 1.0
        # Stratified: each of the ten classes has its share.
        assert labels.bincount().tolist() == pytest.approx([count / 10] * 10, rel=0.05)
    standardised = nets.standardised()(train.tensors[0])
    assert float(standardised.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(standardised.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation(name: str, images: torch.Tensor) -> None:
    before = images.clone()
    result = augmented(images, [name], seed=1)
    assert torch.equal(images, before), "the originals are needed again in the next epoch"
    assert result.shape == images.shape
    assert result.min() >= 0.0
    assert result.max() <= 1.0
    assert torch.equal(result, augmented(images, [name], seed=1))
    assert not torch.equal(result, augmented(images, [name], seed=2))
    changed = (result != images).flatten(1).any(dim=1).double().mean()
    # A flip is drawn with probability one half; a crop may happen to be the whole image.
    low, high = (0.25, 0.75) if name == "flip" else (0.9, 1.0)
    assert low <= changed <= high


def test_augmentation_draws_for_each_image(images: torch.Tensor) -> None:
    same = images[:1].expand(8, -1, -1, -1)
    result = augmented(same, DEFAULT_AUGMENTATIONS, seed=0)
    assert all(not torch.equal(a, b) for a, b in combinations(result, 2))


def test_flip_mirrors_and_only_when_asked(images: torch.Tensor) -> None:
    flipped = augmented(images, ["flip"], seed=1)
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(a or b for a, b in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert "flip" not in DEFAULT_AUGMENTATIONS
    assert torch.equal(augmented(images, [], seed=1), images)


def test_batches_are_the_seeds() -> None:
    train, _ = load_digits(seed=0)

    def stream(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(train, batch_size=500, epochs=2, augmentations=["shift"], seed=seed))

    first, again, other = stream(0), stream(0), stream(1)
    assert [len(labels) for _, labels in first] == [500, 500, 437] * 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    for epoch in (first[:3], first[3:]):
        labels = torch.cat([labels for _, labels in epoch])
        assert torch.equal(labels.bincount(), train.tensors[1].bincount())
    assert not torch.equal(first[0][1], first[3][1]), "each epoch is shuffled anew"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_registry_builds_each_optimizer(library: str, name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    overrides = {"weight_decay": 0.25} if "weight_decay" in OPTIMIZERS[name].arguments else {}
    optimizer = build(library, name, [weight], overrides)
    ours = next(cls for cls in fastopt.optim.CLASSES if cls.__name__.lower() == name)
    assert type(optimizer) is (ours if library == "fastopt" else ours.__bases__[1])
    group = optimizer.param_groups[0]
    assert overrides.items() <= group.items()
    assert group["lr"] == OPTIMIZERS[name].arguments["lr"]
    assert build(library, name, [weight], {"lr": 0.5}).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    """With the arguments that it has here, on whole batches, for which any of them is made."""
    train, _ = load_digits(seed=0)
    train = TensorDataset(*train[:256])
    settings = Settings(40, 256, seed=0, schedule="none", augmentations=(), overrides={})
    learners = train_pair("mlp", name, settings, train, lambda: None)
    for library in LIBRARIES:
        losses = learners[library].losses
        assert losses[-1] < 0.8 * losses[0], (library, losses)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    optimizer = build("torch", "adam", [torch.nn.Parameter(torch.ones(1))], {"lr": 0.1})
    schedule, rates = SCHEDULES[name](optimizer, 30), []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.1)
    assert (rates[-1] < 0.02) == (name != "none")
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("net", NETS)
def test_pair_starts_equal_and_learns(net: str) -> None:
    train, test = load_digits(seed=0)
    settings = Settings(2, 32, seed=0, schedule="none", augmentations=(), overrides={})
    learners = train_pair(net, "adam", settings, train, lambda: None)
    ours, reference = learners["fastopt"], learners["torch"]
    assert ours.losses[0] == reference.losses[0], "equal weights and an equal batch"
    assert ours.net is not reference.net
    assert len(ours.losses) == settings.steps(train) == 90
    assert len(ours.step_seconds) == len(ours.all_seconds) == 89, "the warm-up is not timed"
    assert all(0 < a < b for a, b in zip(ours.step_seconds, ours.all_seconds, strict=True))
    assert ours.accuracy(test) > 0.6
    pair = report.measure(net, "adam", learners, test)
    assert pair.largest_loss_difference < GAPS[net]
    assert pair.control_loss_difference > 0.0, "the control starts elsewhere"


def test_passes_around_the_update() -> None:
    """Clipping, L1 and averages: composed around torch's optimizer, fused into fastopt's."""
    train, test = load_digits(seed=0)
    overrides = {"max_grad_norm": 0.5, "l1": 1e-4, "ema_decay": 0.9}
    settings = Settings(2, 32, seed=0, schedule="none", augmentations=(), overrides=overrides)
    learners = train_pair("mlp", "adam", settings, train, lambda: None)
    pair = report.measure("mlp", "adam", learners, test)
    assert pair.largest_loss_difference < GAPS["mlp"]
    of = {library: run.test_accuracy for library, run in pair.libraries.items()}
    assert of["torch"] == pytest.approx(of["fastopt"], abs=0.01)
    for name in ("max_grad_norm", "l1"):
        less = {k: v for k, v in overrides.items() if k != name}
        other = train_pair(
            "mlp", "adam", dataclasses.replace(settings, overrides=less), train, lambda: None
        )
        assert all(other[library].losses != learners[library].losses for library in LIBRARIES)
    for library in LIBRARIES:
        params = list(learners[library].net.parameters())
        live = [p.detach().clone() for p in params]
        with averaged(learners[library].optimizer):
            assert not any(torch.equal(a, b) for a, b in zip(live, params, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(live, params, strict=True))


def run(out: Path, *more: str) -> dict[str, Any]:
    assert demo.main(["--quick", "--epochs", "2", "--out", str(out), *more]) == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return results


def test_demo_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    results = run(tmp_path, "--optimizers", "SGD", "adam", "RMSprop", "--l2", "1e-4")
    output = capsys.readouterr().out
    assert results["settings"]["overrides"] == {"weight_decay": 1e-4}
    assert [(pair["net"], pair["optimizer"]) for pair in results["pairs"]] == [
        (net, name) for net in ("mlp", "conv") for name in ("sgd", "adam", "rmsprop")
    ]
    rows = [line.split() for line in output.splitlines() if line.split()[:1] in (["mlp"], ["conv"])]
    rows = [row for row in rows if row[2:3] in (["torch"], ["fastopt"])]
    assert len(rows) == 12
    for index, pair in enumerate(results["pairs"]):
        reference, ours = pair["libraries"]["torch"], pair["libraries"]["fastopt"]
        assert len(ours["losses"]) == 16
        assert sum(ours["losses"][-4:]) < sum(ours["losses"][:4]), "the loss falls"
        gaps = [abs(a - b) for a, b in zip(reference["losses"], ours["losses"], strict=True)]
        assert pair["largest_loss_difference"] == max(gaps) < GAPS[pair["net"]]
        ratio = reference["median_step_seconds"] / ours["median_step_seconds"]
        assert pair["step_speed_up"] == pytest.approx(ratio)
        first, second = rows[2 * index : 2 * index + 2]
        control = pair["control_loss_difference"]
        assert first[:5] == [
            pair["net"],
            pair["optimizer"],
            "torch",
            f"{reference['test_accuracy']:.1%}",
            f"{control:.1e}",
        ]
        assert second[2:5] == ["fastopt", f"{ours['test_accuracy']:.1%}", f"{max(gaps):.1e}"]
        assert second[-1] == f"{ratio:.2f}x"
    for name in ("loss_curves.png", "times.png", "layers.png"):
        picture = matplotlib.image.imread(tmp_path / name)
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.05, "not a blank page"


def test_seed_and_augmentation_matter(tmp_path: Path) -> None:
    def losses(*more: str) -> list[float]:
        results = run(tmp_path, "--nets", "mlp", "--optimizers", "sgd", *more)
        curve: list[float] = results["pairs"][0]["libraries"]["torch"]["losses"]
        return curve

    default = losses()
    assert losses() == default
    for change in (["--seed", "1"], ["--no-augment"], ["--augment", "flip"], ["--lr", "0.5"]):
        assert losses(*change) != default, change


@pytest.mark.parametrize(("size", "steps"), [("full", 2), ("1", 2 * 256), ("100", 2 * 3)])
def test_batch_sizes(tmp_path: Path, size: str, steps: int) -> None:
    results = run(tmp_path, "--nets", "mlp", "--optimizers", "adamw", "--batch-size", size)
    (pair,) = results["pairs"]
    assert len(pair["libraries"]["fastopt"]["losses"]) == steps


def test_threads(tmp_path: Path) -> None:
    results = run(tmp_path, "--nets", "mlp", "--optimizers", "sgd", "--threads", "2")
    assert results["environment"]["threads"] == torch.get_num_threads() == 2


def test_lr_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--lr-find", "--nets", "mlp", "--optimizers", "sgd", "adam"]
    assert demo.main([*options, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("try --lr") == 2
    assert matplotlib.image.imread(tmp_path / "lr_find.png")[..., :3].std() > 0.05
    assert not (tmp_path / "results.json").exists()


def test_lr_find_suggests_a_rate_that_learns() -> None:
    train, _ = load_digits(seed=0)
    settings = Settings(1, 32, seed=0, schedule="none", augmentations=(), overrides={})
    curve = lr_find.range_test("conv", "sgd", settings, train, lambda: None)
    # How soon it diverges, and so ends, hangs on rounding.
    assert lr_find.STEPS / 2 < len(curve.lrs) == len(curve.losses) <= lr_find.STEPS
    assert curve.lrs[0] == pytest.approx(lr_find.LOWEST)
    assert 1e-3 < curve.suggestion() < 1e-1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizers", "lbfgs"], list(OPTIMIZERS)),
        (["--optimizers", "rprop", "--l2", "1e-4"], ["rprop has no weight_decay"]),
        (["--nets", "resnet"], list(NETS)),
        (["--augment", "flip", "--no-augment"], ["not allowed with"]),
        (["--batch-size", "0"], ["--batch-size"]),
        (["--batch-size", "full", "--epochs", "1"], ["--epochs"]),
    ],
)
def test_wrong_options(
    options: list[str], message: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        demo.main(options)
    assert exit_.value.code == 2
    errors = capsys.readouterr().err.rpartition("error:")[2]
    assert all(part in errors for part in message)


def test_help_shows_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        demo.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*OPTIMIZERS, *SCHEDULES, *NETS, *AUGMENTATIONS))
