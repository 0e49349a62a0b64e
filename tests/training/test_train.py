"""The training loop: options of its recipe, and interruption at any point, after which resuming gives the same result."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import make_net, same
from torch import Tensor, nn

import compressor.training.train
from compressor.channels import analyse
from compressor.data import Batch, Data, open_data
from compressor.errors import CheckpointError, UsageError
from compressor.methods import catalogue
from compressor.report.schema import Epoch, Score
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method, Progress
from compressor.training.recipe import Recipe
from compressor.training.train import Precision, Training, Watcher, averaged, seed_all

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


class Silent:
    """A watcher that prints nothing."""

    def epoch_began(self, epoch: int, epochs: int, batches: int) -> None: ...
    def step_ended(self, losses: Callable[[], dict[str, float]]) -> None: ...
    def epoch_ended(self, epoch: Epoch, epochs: int) -> None: ...


def make_method(kind: type[Method] = Method, build: Callable[[], nn.Module] = make_net, smoothing: float = 0.0) -> Method:
    torch.manual_seed(0)
    model = build()
    return kind(Job(model, SHAPE, analyse(model, SHAPE), parse_rate(0.5), Classify(smoothing)))


def train(method: Method, data: Data, **recipe: object) -> dict[str, Tensor]:
    """The weights after training with batches of 128."""
    Training(method, data, Recipe(**recipe), CPU).run(Silent())  # type: ignore[arg-type]
    return method.model.state_dict()


class Flat(nn.Module):
    """Without batch norm and dropout: the gradient of a batch is the sum of the gradients of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return logits


# What training does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [{"lr": 0.3}, {"optimizer": "adamw", "lr": 0.02}, {"lr": 0.3, "schedule": "step"}])
def test_a_network_learns(digits: Data, recipe: dict[str, object]) -> None:
    method = make_method()
    history = Training(method, digits, Recipe(epochs=5, **recipe), CPU).run(Silent())  # type: ignore[arg-type]
    losses = [epoch.losses["cross_entropy"] for epoch in history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5]
    held_out = history[-1].held_out
    assert held_out is not None and (held_out.name, held_out.n) == ("top1", digits.counts["held_out"])
    batches = digits.batches("held_out", batch_size=50, device=CPU)
    hits = [method.model.eval()(batch.inputs).argmax(1) == batch.targets for batch in batches]
    assert held_out.value == torch.cat(hits).double().mean().item() > 0.3


def test_the_optimizer_is_given_these_rates(digits: Data) -> None:
    seen = []

    class Watcher(Silent):
        def step_ended(self, losses: Callable[[], dict[str, float]]) -> None:
            seen.append(training.optimizer.param_groups[0]["lr"])

    recipe = Recipe(epochs=2, batch_size=324, lr=0.6, warmup=0.5)
    training = Training(make_method(), digits, recipe, CPU)
    history = training.run(Watcher())
    assert seen == pytest.approx([recipe.checked().rate(step, 4) for step in range(8)])
    assert [epoch.lr for epoch in history] == [seen[3], seen[7]]


def test_accumulated_batches_are_one_larger_batch(digits: Data) -> None:
    recipe = {"epochs": 1, "lr": 0.1}
    whole = train(make_method(build=Flat), digits, batch_size=200, **recipe)
    parts = train(make_method(build=Flat), digits, batch_size=50, accumulate=4, **recipe)  # 1294 images: the last are fewer
    other = train(make_method(build=Flat), digits, batch_size=50, **recipe)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(other["conv.weight"], whole["conv.weight"], rtol=1e-2)


def test_a_method_may_want_training_images_as_they_are(digits: Data) -> None:
    seen: dict[bool, list[Tensor]] = {}

    class Looking(Method):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            seen.setdefault(self.augments, []).append(batch.inputs)
            return super().loss(batch)

    class Plain(Looking):
        augments = False

    for kind in (Looking, Plain):
        train(make_method(kind), digits, epochs=1, cutout=0.5)
    plain = [batch.inputs for batch in digits.batches("train", batch_size=128, device=CPU, augment=False)]
    assert all(torch.equal(*pair) for pair in zip(seen[False], plain, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(seen[True], plain, strict=True))
    seen.clear()
    train(make_method(Looking), digits, epochs=1, augment=False)
    assert all(torch.equal(*pair) for pair in zip(seen[True], plain, strict=True)), "the recipe can turn it off, too"


def test_a_method_may_want_several_views_and_images_by_class(digits: Data) -> None:
    seen: list[Batch] = []

    class Looking(Method):
        views, by_class = 2, 2

        def loss(self, batch: Batch) -> dict[str, Tensor]:
            seen.append(batch)
            return super().loss(batch)

    train(make_method(Looking), digits, epochs=1, channels_last=True)
    for batch in seen:
        assert batch.views[0] is batch.inputs and not torch.equal(*batch.views)
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.views)
        assert torch.equal(batch.targets[::2], batch.targets[1::2])


class Recording(Method):
    """Remembers the weights after each step."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.seen: list[dict[str, Tensor]] = []
        self.dtypes: set[torch.dtype] = set()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.dtypes.add(self.model(batch.inputs).dtype)
        return super().loss(batch)

    def end_step(self, batch: Batch) -> None:
        self.seen.append({name: value.clone() for name, value in self.model.state_dict().items()})


def test_averaged_weights_follow_the_networks_slowly_and_are_kept(digits: Data) -> None:
    method = make_method(Recording)
    assert isinstance(method, Recording)
    kept = train(method, digits, epochs=1, batch_size=324, lr=0.1, ema_decay=0.75)
    mean = method.seen[0]
    for weights in method.seen[1:]:
        mean = {name: 0.75 * mean[name] + 0.25 * weights[name] for name in mean}
    assert len(method.seen) == 4
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, mean[name])


def test_whole_numbers_are_copied_and_not_averaged() -> None:
    """An average of 7 and 7 in float32 can be just below 7 and be truncated to 6: wrong indices in a scattered layer."""
    model = nn.Linear(2, 2)
    model.register_buffer("places", torch.arange(1, 50))
    mean = averaged(model, 0.9)
    for _ in range(5):
        mean.update_parameters(model)
    assert torch.equal(mean.module.get_buffer("places"), torch.arange(1, 50))


def test_label_smoothing_changes_what_is_learnt(digits: Data) -> None:
    plain, smooth = (train(make_method(smoothing=s), digits, epochs=1, lr=0.1) for s in (0.0, 0.1))
    assert not same(plain, smooth)


def test_hidden_squares_change_what_is_learnt(digits: Data) -> None:
    plain, hidden = (train(make_method(), digits, epochs=1, lr=0.1, cutout=share) for share in (0.0, 0.4))
    assert not same(plain, hidden)


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(digits: Data) -> None:
    method = make_method(Recording)
    assert isinstance(method, Recording)
    weights = train(method, digits, epochs=1, lr=0.1, amp="bf16")
    assert method.dtypes == {torch.bfloat16}
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match="--amp fp16 needs a GPU"):
        Precision("fp16", CPU)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(digits: Data) -> None:
    once, again, other = (train(make_method(), digits, epochs=2, lr=0.1, seed=seed) for seed in (1, 1, 2))
    assert same(once, again)
    assert not same(once, other)


def test_every_epoch_has_a_seed_of_its_own() -> None:
    drawn = set()
    for seed in (-1, 0, 1):
        for epoch in (0, 1, 2):
            seed_all(seed, epoch)
            drawn.add(float(torch.rand(())))
    assert len(drawn) == 9


def test_the_memory_layout_changes_nothing_but_rounding(digits: Data) -> None:
    plain, last = (train(make_method(), digits, epochs=1, lr=0.01, channels_last=layout) for layout in (False, True))
    assert last["conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last["conv1.weight"], plain["conv1.weight"], rtol=1e-2, atol=1e-4)


def test_a_loss_that_is_no_number_ends_the_training(digits: Data, tmp_path: Path) -> None:
    training = Training(make_method(), digits, Recipe(epochs=3, lr=1e30), CPU, tmp_path / "state.pt")
    with pytest.raises(UsageError, match=r"diverged in epoch 1 of 3: the loss is (nan|inf).\nLower --lr \(it was 1e\+30\)"):
        training.run(Silent())
    assert not list(tmp_path.iterdir())


def test_a_loss_that_grows_by_orders_of_magnitude_ends_the_training(digits: Data) -> None:
    training = Training(make_method(), digits, Recipe(epochs=3, lr=500), CPU)
    with pytest.raises(
        UsageError, match=r"diverged in epoch 1 of 3: the loss is [\d.e+]+, and was 2\.\d+ at first.\nLower --lr"
    ):
        training.run(Silent())


class Scripted(Training):
    """With these scores on the held-out images: before training, and after each epoch."""

    scores = (0.5, 0.7, 0.8, 0.6, 0.8, 0.7, 0.75, 0.7)
    more_is_better = True

    def _held_out(self, intervals: bool = False) -> Score:
        value = self.scores[len(self.history) + self.counted]
        return Score("top1", "top-1", value, "%", 2, 100, more_is_better=self.more_is_better)

    counted = 0

    def _epoch(self, epoch: int, watcher: Watcher) -> Epoch:
        self.counted = 1
        return super()._epoch(epoch, watcher)

    def _keep_best(self) -> None:
        self.counted = 0
        super()._keep_best()


class Keeping(Silent):
    """Keeps the weights after every epoch."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.weights: list[dict[str, Tensor]] = []

    def epoch_ended(self, epoch: Epoch, epochs: int) -> None:
        network = self.training.method.model if self.training.ema is None else self.training.ema.module
        self.weights.append({name: value.clone() for name, value in network.state_dict().items()})


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_last_of_the_best_epochs_is_kept(digits: Data, tmp_path: Path, ema_decay: float | None) -> None:
    recipe = Recipe(epochs=5, select="best", ema_decay=ema_decay)
    training = Scripted(make_method(), digits, recipe, CPU, tmp_path / "state.pt")
    kept = Keeping(training)
    training.run(kept)
    assert training.chosen == 4 and len(training.history) == 5
    assert same(training.method.model.state_dict(), kept.weights[3])
    again = Scripted(make_method(), digits, recipe, CPU, tmp_path / "state.pt")
    assert again.resume()
    again.run(Silent())
    assert again.chosen == 4 and same(again.method.model.state_dict(), kept.weights[3])


def test_the_weights_before_training_are_kept_if_no_epoch_is_better(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "more_is_better", False)
    training = Scripted(make_method(), digits, Recipe(epochs=2, select="best"), CPU)
    before = {name: value.clone() for name, value in training.method.model.state_dict().items()}
    training.run(Silent())
    assert training.chosen == 0 and same(training.method.model.state_dict(), before)


def test_training_ends_when_the_score_has_not_risen_for_some_epochs(digits: Data) -> None:
    training = Scripted(make_method(), digits, Recipe(epochs=7, patience=2), CPU)
    kept = Keeping(training)
    training.run(kept)
    assert len(training.history) == 6 and training.chosen == 6, "epoch 4 was the best"
    assert same(training.method.model.state_dict(), kept.weights[5])


def test_a_diverged_training_is_not_finished_for_hours(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Method):
        batches = 0

        def loss(self, batch: Batch) -> dict[str, Tensor]:
            self.batches += 1
            return {"cross_entropy": super().loss(batch)["cross_entropy"] * math.nan}

    monkeypatch.setattr(compressor.training.train, "LOOK_EVERY", 4)
    method = make_method(Broken)
    with pytest.raises(UsageError, match="diverged"):
        Training(method, digits, Recipe(epochs=1, batch_size=16), CPU).run(Silent())
    assert method.batches == 4


# Interrupting and resuming --------------------------------------------------------------------------------------------


def make_pruning(name: str) -> Method:
    """The method `name`, prepared as a run prepares it."""
    torch.manual_seed(0)
    model = make_net()
    method = catalogue.create(
        catalogue.find(name, "prune"), Job(model, SHAPE, analyse(model, SHAPE), parse_rate(0.4), Classify()), {}
    )
    method.prepare()
    method.model.requires_grad_(True)
    return method


def in_a_batch(training: Training, watcher: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the second epoch's fifth batch."""
    real, calls = training.method.loss, []

    def loss(batch: Batch) -> dict[str, Tensor]:
        calls.append(batch)
        if len(calls) == 11 + 5:
            raise KeyboardInterrupt
        return real(batch)

    monkeypatch.setattr(training.method, "loss", loss)


def in_a_step(training: Training, watcher: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the optimizer has changed some of the weights, and not the others."""
    steps = []

    def half_a_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        steps.append(optimizer)
        if len(steps) == 11 + 5:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].add_(1)
            raise KeyboardInterrupt

    training.optimizer.register_step_pre_hook(half_a_step)


def in_saving(training: Training, watcher: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    """When half of the second epoch's state is written."""
    real, saves = torch.save, []

    def save(saved: object, file: object) -> None:
        saves.append(saved)
        if len(saves) == 2:
            file.write(b"PK half")  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        real(saved, file)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", save)


def between_epochs(training: Training, watcher: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    def epoch_ended(epoch: Epoch, epochs: int) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(watcher, "epoch_ended", epoch_ended)


def in_the_end_of_an_epoch(training: Training, watcher: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_epoch(progress: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.method, "end_epoch", end_epoch)


@pytest.mark.parametrize("interrupt", [in_a_batch, in_a_step, in_saving, between_epochs, in_the_end_of_an_epoch])
@pytest.mark.parametrize("name", ["magnitude", "sfp"])
def test_a_training_that_was_stopped_anywhere_ends_as_if_it_was_not(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, interrupt: Callable[..., None]
) -> None:
    recipe = Recipe(epochs=3, lr=0.1, ema_decay=0.9, cutout=0.4, optimizer="adamw" if interrupt is in_a_batch else "sgd")
    whole = Training(make_pruning(name), digits, recipe, CPU)
    whole.run(Silent())

    first, watcher = Training(make_pruning(name), digits, recipe, CPU, tmp_path / "state.pt"), Silent()
    with monkeypatch.context() as patched:
        interrupt(first, watcher, patched)
        with pytest.raises(KeyboardInterrupt):
            first.run(watcher)
    torch.rand(17)  # a new process has another random state

    second = Training(make_pruning(name), digits, recipe, CPU, tmp_path / "state.pt")
    assert second.resume() is (interrupt is not in_the_end_of_an_epoch)
    assert len(second.history) == {"between_epochs": 2, "in_the_end_of_an_epoch": 0}.get(interrupt.__name__, 1)
    second.run(Silent())
    assert same(second.method.state_dict(), whole.method.state_dict())
    assert [epoch.losses for epoch in second.history] == [epoch.losses for epoch in whole.history]
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_there_is_nothing_to_resume_without_a_state(digits: Data, tmp_path: Path) -> None:
    assert not Training(make_method(), digits, Recipe(epochs=1), CPU).resume()
    assert not Training(make_method(), digits, Recipe(epochs=1), CPU, tmp_path / "none.pt").resume()


def test_a_damaged_state_or_one_of_another_network_is_refused(digits: Data, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    Training(make_method(), digits, Recipe(epochs=1), CPU, state).run(Silent())
    other = Training(make_method(build=Flat), digits, Recipe(epochs=1), CPU, state)
    with pytest.raises(CheckpointError, match="damaged or of another network"):
        other.resume()
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="--force starts over"):
        Training(make_method(), digits, Recipe(epochs=1), CPU, state).resume()
