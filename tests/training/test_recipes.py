"""Recipes: what a training does where nothing is said."""

import pytest

from cdn.errors import CDNError
from cdn.training.recipes import BY_DATA, FIXED_SIZE, NAMED
from cdn.training.settings import Settings

# What every training has to know, and no default tells.
NEEDED = (
    "model",
    "width",
    "stem",
    "head",
    "objective",
    "denoising_weight",
    "clean_share",
    "batch_size",
    "crop_padding",
    "flip",
    "optimizer",
    "learning_rate",
    "warmup",
    "ema",
    "epochs",
)


@pytest.mark.parametrize("objective", ["joint", "classification", "denoising", "jem"])
@pytest.mark.parametrize(("data", "recipe"), [*((data, None) for data in BY_DATA), *(("hf", name) for name in NAMED)])
def test_every_recipe_says_all_that_is_needed(data, recipe, objective):
    settings = Settings(data=data, recipe=recipe, objective=objective)
    assert not [name for name in NEEDED if getattr(settings, name) is None]


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_by_name_stands_in_for_that_of_the_data_and_options_for_both(name):
    usual, named = Settings(data="imagefolder"), Settings(data="imagefolder", recipe=name)
    assert all(getattr(named, key) == value for key, value in NAMED[name].items())
    assert (named.image_size, usual.image_size) == (NAMED[name]["image_size"], None)
    own = Settings(data="imagefolder", recipe=name, image_size=96, warmup=7, epochs=3)
    assert (own.image_size, own.warmup, own.epochs, own.ema) == (96, 7, 3, named.ema)
    assert Settings(data="imagefolder", recipe=name, steps=5).epochs is None


@pytest.mark.parametrize("data", FIXED_SIZE)
def test_images_that_have_a_size_take_no_recipe_that_resizes_them(data):
    with pytest.raises(CDNError, match=f"--recipe imagenet resizes images, and those of {data} have a size already"):
        Settings(data=data, recipe="imagenet")


def test_denoising_alone_leaves_no_image_clean():
    for options in (dict(objective="denoising"), dict(model="denoiser18")):
        assert Settings(data="cifar10", **options).clean_share == 0
    assert Settings(data="cifar10", objective="denoising", clean_share=0.5).clean_share == 0.5
    assert Settings(data="cifar10").clean_share > 0


def test_an_unknown_recipe_is_refused():
    with pytest.raises(CDNError, match="recipe: expected one of imagenet, imagenet64, got 'mnist'"):
        Settings(data="hf", recipe="mnist")


def test_settings_of_older_versions_know_no_recipe():
    old = {name: value for name, value in Settings(data="hf").as_dict().items() if name != "recipe"}
    assert Settings.from_dict(old).recipe is None
