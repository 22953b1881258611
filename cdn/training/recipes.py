"""Recipes: the settings of a training that fit a data set, by its name or by their own.

Those of digits and CIFAR-10 were chosen by measurement (docs/ablations.md). Those of ImageNet follow the recipe of
CIFAR-10 and customary values, and were not run: what they would take is computed in docs/results.md.
"""

from typing import Any

from cdn.data.dataset import OWN

Recipe = dict[str, Any]

_COMMON: Recipe = dict(stem="cifar", warmup=100)
_PHOTOGRAPHS: Recipe = _COMMON | dict(
    model="gradresnet18",
    width=64,
    epochs=100,
    crop_padding=4,
    flip=True,
    optimizer="muon",
    learning_rate=3e-3,
    denoising_weight=12.0,
    clean_share=0.75,
    ema=0.998,
)
# By the name of the data.
BY_DATA: dict[str, Recipe] = {
    "digits": _COMMON
    | dict(
        model="gradresnet-small",
        width=64,
        epochs=60,
        batch_size=64,
        crop_padding=1,
        flip=False,
        optimizer="adamw",
        learning_rate=6e-3,
        denoising_weight=3.0,
        clean_share=0.0,
        ema=0.99,
        mean=0.0,
    ),
    "cifar10": _PHOTOGRAPHS | dict(batch_size=128, learning_rate=6e-3),
    "imagefolder": _PHOTOGRAPHS | dict(batch_size=64),
    "hf": _PHOTOGRAPHS | dict(batch_size=128),
    OWN: _PHOTOGRAPHS | dict(batch_size=128),
}
_IMAGENET: Recipe = _PHOTOGRAPHS | dict(epochs=60, batch_size=512, warmup=2000, ema=0.9998)
# By a name of their own, for data whose images can be resized. Longer warm-up and averages go with the longer run. At
# 224 pixels the stem reduces the resolution by four, and random parts of at least a quarter of a photograph take the
# place of translations.
NAMED: dict[str, Recipe] = {
    "imagenet": _IMAGENET | dict(image_size=224, stem="imagenet", crop_area=0.25, crop_padding=0),
    "imagenet64": _IMAGENET | dict(image_size=64),
}
RECIPES = BY_DATA | NAMED
NAMED_DATA = tuple(name for name in BY_DATA if name != OWN)  # what a command can load
FIXED_SIZE = ("digits", "cifar10", OWN)


def recipe_for(data: str, name: str | None, objective: str) -> Recipe:
    """Return the recipe of a data set, or the one that is named, with what an objective changes of it.

    Clean images have no part in denoising. The contrast of a joint energy model with samples makes its gradients noisy:
    at the rate of the other objectives it diverged on the digits.
    """
    recipe = RECIPES[name or data] | dict(head="linear" if objective == "jem" else "log-energy")
    if objective == "denoising":
        recipe["clean_share"] = 0.0
    if objective == "jem" and data == "digits":
        recipe["learning_rate"] = 1e-3
    return recipe
