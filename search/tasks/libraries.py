"""Networks of torchvision, timm and transformers by their names, as functions for `Task(model=...)`.

    from search.tasks import Task, torchvision_model

    def task() -> Task:
        return Task(name="flowers", model=torchvision_model("resnet18", classes=5, weights="DEFAULT"), train=..., ...)

The libraries are extras, `[vision]` and `[transformers]`: a function that lacks its own says so when the task is made.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from search.errors import UserError
from search.spelling import suggest

Build: TypeAlias = Callable[[], nn.Module]
#: Of a library's message: what it says after that is advice for other situations.
_MOST_SAID = 300


def torchvision_model(name: str, *, classes: int | None = None, weights: str | None = None, **options: Any) -> Build:
    """Builds the torchvision model `name`, such as `resnet18`, with `classes` outputs; None leaves the model's own.

    `weights` are torchvision's (`"DEFAULT"`, `"IMAGENET1K_V1"`): with `classes` its last layers are replaced by new,
    untrained ones, so that the task needs a `dense` recipe. `options` go to torchvision. Raises `UserError` at once
    where torchvision is missing or has no such model.
    """
    models = _library("torchvision", "vision", ".models")
    _known(name, models.list_models(), "torchvision")
    _require_classes(classes)

    def build() -> nn.Module:
        if weights is None:
            wanted = options if classes is None else {"num_classes": classes, **options}
            return _network(models.get_model(name, weights=None, **wanted))
        with _told(f"torchvision's {name!r} with the weights {weights!r}"):
            made = _network(models.get_model(name, weights=weights, **options))
        return made if classes is None else with_classes(made, classes)

    return build


def timm_model(name: str, *, classes: int | None = None, pretrained: bool = False, **options: Any) -> Build:
    """Builds the timm model `name`, such as `mobilenetv3_small_100` or `resnet18.a1_in1k`, in its exportable form.

    With `pretrained` weights and `classes` timm gives it a new, untrained last layer, so that the task needs a `dense`
    recipe. `options` go to `timm.create_model`. Raises `UserError` at once where timm is missing or has no such model.
    """
    timm = _library("timm", "vision")
    if ":" not in name and not timm.is_model(name):  # hf-hub:user/name is asked for when it is built
        _known(name.partition(".")[0], timm.list_models(), "timm")
    _require_classes(classes)
    wanted = options if classes is None else {"num_classes": classes, **options}

    def build() -> nn.Module:
        with _told(f"timm's {name!r}"):
            return _network(timm.create_model(name, pretrained=pretrained, **{"exportable": True, **wanted}))

    return build


def transformers_model(source: Any, *, classes: int | None = None, pretrained: bool = True, **options: Any) -> Build:
    """Builds an image classifier of transformers: of a name on the hub or a folder (`microsoft/resnet-18`), with its
    weights unless `pretrained` is False, or of a configuration (`ResNetConfig(...)`), always untrained.

    Where the weights are for another number of `classes`, the last layer is new and untrained, so that the task needs a
    `dense` recipe. Weights are float32, and attention is written out (`eager`), which exports where fused kernels do
    not; `options` go to transformers and may say otherwise. Raises `UserError` at once where transformers is missing.
    """
    transformers = _library("transformers", "transformers")
    _require_classes(classes)
    chosen = {"attn_implementation": "eager", "dtype": torch.float32, **options}
    labels = {} if classes is None else {"num_labels": classes}
    named = isinstance(source, str | os.PathLike)
    if not named and not isinstance(source, transformers.PretrainedConfig):
        raise UserError(f"transformers_model takes a name, a folder or a configuration, got {type(source).__name__}")

    def build() -> nn.Module:
        auto = transformers.AutoModelForImageClassification
        with _told(f"the image classifier {str(source) if named else type(source).__name__!r}"), _silent():
            if named and pretrained:
                return _network(auto.from_pretrained(source, ignore_mismatched_sizes=True, **labels, **chosen))
            config = transformers.AutoConfig.from_pretrained(source) if named else copy.deepcopy(source)
            if classes is not None:
                config.num_labels = classes
            return _network(auto.from_config(config, **chosen))

    return build


def with_classes(model: nn.Module, classes: int) -> nn.Module:
    """`model` with a new, untrained last layer of `classes` outputs: its last linear layer or convolution, and those
    of auxiliary heads (`aux` in the name) with as many outputs. Changed in place. Raises `UserError` where it has none.
    """
    layers = {n: m for n, m in model.named_modules() if n and isinstance(m, nn.Linear | nn.Conv2d)}
    last = next((name for name in reversed(layers) if "aux" not in name.lower()), None)
    if last is None:
        raise UserError(f"{type(model).__name__} holds no linear layer and no convolution: its last layer is not known")
    for name, layer in layers.items():
        if name == last or ("aux" in name.lower() and _outputs(layer) == _outputs(layers[last])):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _renewed(layer, classes))
    return model


def _outputs(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _renewed(layer: nn.Linear | nn.Conv2d, outputs: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias=bias)
    kernel: Any = layer.kernel_size
    stride: Any = layer.stride
    return nn.Conv2d(layer.in_channels, outputs, kernel, stride, layer.padding, bias=bias)  # type: ignore[arg-type]


def _library(name: str, extra: str, part: str = "") -> Any:
    """The library, imported here. Raises `UserError` naming the extra, or what hinders an installed one."""
    mend = f"pip install 'prunefront[{extra}]'"
    try:
        return importlib.import_module(name + part)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing.partition(".")[0] == name:
            raise UserError(f"models of {name} need {name}, which is not installed here: {mend}") from None
        raise UserError(f"{name} needs the module {missing!r}, which is not installed here: {mend}") from error
    except Exception as error:  # such as a torchvision that was built for another torch
        raise UserError(
            f"{name} is installed here and cannot be imported with torch {torch.__version__} "
            f"({type(error).__name__}: {_said(error)}): install the one that belongs to it"
        ) from error


def _known(name: str, names: list[str], library: str) -> None:
    if name not in names:
        raise UserError(f"{library} has no model {name!r}: {suggest(name, names)}")


def _require_classes(classes: int | None) -> None:
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise UserError(f"classes must be a whole number of at least 1, got {classes!r}")


def _network(made: Any) -> nn.Module:
    """What a library made, for type checkers."""
    assert isinstance(made, nn.Module)
    return made


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What a library raises where weights are unknown or cannot be had, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{what} cannot be had: {type(error).__name__}: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MOST_SAID else text[: _MOST_SAID - 1] + "…"


@contextmanager
def _silent() -> Iterator[None]:
    """transformers warns of each new last layer and shows how loading gets on; a search builds its network often."""
    logging = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
