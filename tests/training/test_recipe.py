"""The values of a recipe: defaults, predefined recipes, and options that override them."""

import math
from pathlib import Path

import pytest
from small import make_net, prune

from compressor.errors import UsageError
from compressor.methods.catalogue import catalogue
from compressor.report import read_report
from compressor.training.recipe import Recipe

# Rates ----------------------------------------------------------------------------------------------------------------


def rates(**recipe: object) -> list[float]:
    """The learning rates of two epochs of four steps."""
    checked = Recipe(epochs=2, lr=0.6, **recipe).checked()  # type: ignore[arg-type]
    return [checked.rate(step, 4) for step in range(8)]


def test_a_cosine_begins_at_the_top_and_ends_near_zero() -> None:
    assert rates() == pytest.approx([0.3 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


def test_a_warm_up_climbs_by_equal_steps_before_the_cosine() -> None:
    half = [0.6, 0.6 * 0.9330127, 0.6 * 0.75, 0.3, 0.6 * 0.25, 0.6 * 0.0669873]  # cos² of 0, 15, 30, 45, 60, 75 degrees
    assert rates(warmup=0.5) == pytest.approx([0.2, 0.4, *half])


def test_a_step_schedule_divides_by_ten_at_its_milestones() -> None:
    assert rates(schedule="step") == pytest.approx([0.6] * 4 + [0.06] * 2 + [0.006] * 2)
    assert rates(schedule="step", milestones=(0.25,)) == pytest.approx([0.6] * 2 + [0.06] * 6)


def test_another_factor_can_be_asked_for() -> None:
    assert rates(schedule="step", gamma=0.5) == pytest.approx([0.6] * 4 + [0.3] * 2 + [0.15] * 2)


@pytest.mark.parametrize("steps", [1, 7, 352, 391, 5005])
@pytest.mark.parametrize(
    ("side", "epochs", "rates_by_epoch"),
    [
        (32, 200, {0: 0.01, 59: 0.01, 60: 0.002, 119: 0.002, 120: 0.0004, 159: 0.0004, 160: 8e-5, 199: 8e-5}),
        (224, 100, {0: 0.01, 29: 0.01, 30: 0.001, 59: 0.001, 60: 1e-4, 89: 1e-4, 90: 1e-5, 99: 1e-5}),
    ],
)
def test_the_papers_rates_fall_between_two_epochs(side: int, epochs: int, rates_by_epoch: dict[int, float], steps: int) -> None:
    recipe = Recipe.paper(side).checked()
    assert recipe.epochs == epochs
    for epoch, rate in rates_by_epoch.items():
        first_and_last = [recipe.rate(epoch * steps, steps), recipe.rate(epoch * steps + steps - 1, steps)]
        assert first_and_last == pytest.approx([rate, rate]), epoch


@pytest.mark.parametrize(
    ("recipe", "epochs", "rates_by_epoch"),
    [
        (Recipe.taught(32), 240, {0: 0.05, 149: 0.05, 150: 0.005, 180: 0.0005, 210: 0.00005}),
        (Recipe.taught(224), 100, {0: 0.1, 30: 0.01, 60: 0.001, 90: 0.0001}),
        (Recipe.mutual(32), 300, {0: 0.1, 150: 0.05}),
        (Recipe.mutual(224), 90, {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001}),
    ],
)
def test_the_papers_on_distillation_train_longer(recipe: Recipe, epochs: int, rates_by_epoch: dict[int, float]) -> None:
    recipe = recipe.checked()
    assert (recipe.epochs, recipe.recipe, recipe.teacher) == (epochs, "paper", "none")
    assert {epoch: recipe.rate(10 * epoch, 10) for epoch in rates_by_epoch} == pytest.approx(rates_by_epoch)


def test_the_quick_recipe_warms_up_for_one_epoch_in_twenty() -> None:
    recipe = Recipe.quick().checked()
    assert (recipe.epochs, recipe.warmup) == (20, 1.0)
    assert recipe.rate(0, 4) == pytest.approx(0.02 / 5) and recipe.rate(4, 4) == 0.02 and recipe.rate(79, 4) < 1e-4
    assert Recipe.quick(1).checked().warmup == 0.05


# Defaults and invalid values ------------------------------------------------------------------------------------------


def test_what_is_left_open_depends_on_the_optimizer() -> None:
    sgd, adamw = Recipe().checked(), Recipe(optimizer="adamw").checked()
    assert (sgd.lr, sgd.weight_decay) == (0.02, 1e-4)
    assert (adamw.lr, adamw.weight_decay) == (5e-4, 0.05)


def test_the_papers_train_with_nesterov_momentum_and_hide_squares_of_small_images_alone() -> None:
    small, large = Recipe.paper(32, cutout=0.375).checked(), Recipe.paper(224, cutout=0.375).checked()
    assert (small.batch_size, small.weight_decay, small.cutout) == (128, 5e-4, 0.375)
    assert (large.batch_size, large.weight_decay, large.cutout) == (256, 1e-4, 0.0)
    assert small.momentum == large.momentum == 0.9 and small.optimizer == large.optimizer == "sgd"


@pytest.mark.parametrize(("name", "cutout"), [("pgmpf", 12 / 32), ("srfp", 12 / 32), ("sfp", 0.0), ("magnitude", 0.0)])
def test_whether_squares_are_hidden_is_said_by_the_paper(name: str, cutout: float) -> None:
    assert catalogue()[name].cutout == cutout


def test_sgd_has_nesterov_momentum_and_decays_everything() -> None:
    (group,) = Recipe().checked().build(make_net().parameters()).param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-4)


def test_adamw_does_not_decay_norms_and_biases() -> None:
    decayed, flat = Recipe(optimizer="adamw").checked().build(make_net().parameters()).param_groups
    assert (decayed["weight_decay"], flat["weight_decay"]) == (0.05, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2, 4} and {p.dim() for p in flat["params"]} == {1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("warmup", -1.0),
        ("warmup", 3.0),
        ("accumulate", 0),
        ("ema_decay", 1.0),
        ("label_smoothing", 1.0),
        ("gamma", 0.0),
        ("cutout", 1.5),
    ],
)
def test_a_recipe_without_sense_is_refused_by_name(name: str, value: float) -> None:
    recipe = Recipe(**{"epochs": 3, name: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be .*; found {value}"):
        recipe.checked()


def test_a_milestone_is_a_share_of_the_training() -> None:
    with pytest.raises(UsageError, match=r"--milestones must be shares between 0 and 1; found \(30.0, 60.0\)"):
        Recipe(milestones=(30.0, 60.0)).checked()


# On the command line --------------------------------------------------------------------------------------------------

PAPER = ("--data", "digits", "--rate", "0.4", "--recipe", "paper")


def test_what_a_recipe_says_is_written_down_and_options_beside_it_win(project: Path) -> None:
    result = prune(*PAPER, "--epochs", "1", "--gamma", "0.1", "--milestones", "0.2,0.9", "--out", "run")
    assert result.exit_code == 0, result.output
    settings = read_report(project / "run").settings
    expected = {"recipe": "paper", "epochs": 1, "lr": 0.01, "weight_decay": 5e-4, "schedule": "step", "batch_size": 128}
    assert {name: settings[name] for name in expected} == expected
    assert (settings["gamma"], settings["milestones"], settings["cutout"]) == (0.1, "0.2, 0.9", 0.0)
    config = (project / "run" / "config.toml").read_text()
    assert 'recipe = "paper"\n' in config and "milestones = [0.2, 0.9]\n" in config


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rate", "0.4", "--recipe", "quick"), "--recipe quick needs images to train on: give --data"),
        ((*PAPER, "--milestones", "30;60"), "--milestones '30;60' is not a list of numbers: write fractions of the training"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(project: Path, options: tuple[str, ...], told: str) -> None:
    result = prune(*options)
    assert result.exit_code == 2 and told in result.stderr
