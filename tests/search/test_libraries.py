"""Networks by their names: what torchvision and timm are asked for, what is said where they are not there.

Both are stood in for: neither can be imported beside every torch. The last tests ask the real ones, where they are.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search.errors import UserError
from search.job_file import load_job
from search.tasks import Arrays, Task, check_task, prepare, timm_model, torchvision_model, transformers_model
from search.tasks.dense import build_model
from search.tasks.libraries import with_classes


class Inception(nn.Module):
    """A network with an auxiliary head before its own, as torchvision's is."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.AuxLogits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.features(x).mean((2, 3)))
        return scores


class Fully(nn.Module):
    """Scores of a convolution, and an auxiliary classifier behind them, as in torchvision's segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 21, 1, bias=False))
        self.aux_classifier = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 21, 1))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What a stand-in for torchvision was asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def get_model(name: str, *, weights: str | None, **options: Any) -> nn.Module:
        asked.append((name, {"weights": weights, **options}))
        if weights not in (None, "DEFAULT"):
            raise ValueError(f"Unknown value '{weights}'\nfor Inception_Weights.")
        return Inception(**options)

    library, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    vars(models).update(list_models=lambda: ["inception_v3", "resnet18"], get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", library)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return asked


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What a stand-in for timm was asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        if options["pretrained"] and ":" in name:
            raise OSError("no such repository")
        return Inception(options.get("num_classes", 1000))

    library = ModuleType("timm")
    names = ["mobilenetv3_small_100", "resnet18"]
    known = {"is_model": lambda name: name.partition(".")[0] in names, "list_models": lambda: names}
    vars(library).update(known, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", library)
    return asked


def test_a_torchvision_model_with_classes_of_its_own(torchvision: list[tuple[str, dict[str, Any]]]) -> None:
    network = torchvision_model("inception_v3", classes=5)()
    assert torchvision == [("inception_v3", {"weights": None, "num_classes": 5})]
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert torchvision_model("inception_v3")()(torch.zeros(2, 3, 8, 8)).shape == (2, 1000)


def test_trained_weights_keep_all_but_the_heads(torchvision: list[tuple[str, dict[str, Any]]]) -> None:
    network = torchvision_model("inception_v3", classes=5, weights="DEFAULT")()
    assert torchvision == [("inception_v3", {"weights": "DEFAULT"})], "with these torchvision takes no other classes"
    assert network.get_submodule("fc").out_features == network.get_submodule("AuxLogits.2").out_features == 5
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    with pytest.raises(UserError, match=r"^torchvision's 'inception_v3' with the weights 'V9' cannot be had: ") as said:
        torchvision_model("inception_v3", weights="V9")()
    assert "\n" not in str(said.value)


def test_a_timm_model_is_the_exportable_one(timm: list[tuple[str, dict[str, Any]]]) -> None:
    assert timm_model("resnet18.a1_in1k", classes=3)()(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    timm_model("mobilenetv3_small_100", pretrained=True, drop_rate=0.1)()
    assert timm == [
        ("resnet18.a1_in1k", {"pretrained": False, "exportable": True, "num_classes": 3}),
        ("mobilenetv3_small_100", {"pretrained": True, "exportable": True, "drop_rate": 0.1}),
    ]
    with pytest.raises(UserError, match=r"^timm's 'hf-hub:a/b' cannot be had: OSError: no such repository$"):
        timm_model("hf-hub:a/b", pretrained=True)()


def test_names_and_classes_are_looked_at_when_the_task_is_made(torchvision: object, timm: object) -> None:
    with pytest.raises(UserError, match="torchvision has no model 'resnet81': did you mean 'resnet18'"):
        torchvision_model("resnet81")
    with pytest.raises(UserError, match="timm has no model 'mobilenetv3_smal_100': did you mean 'mobilenetv3_small_1"):
        timm_model("mobilenetv3_smal_100")
    for wrong in (0, True, 2.5):
        with pytest.raises(UserError, match=rf"classes must be a whole number of at least 1, got {wrong}"):
            torchvision_model("resnet18", classes=wrong)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=rf"classes must be a whole number of at least 1, got {wrong}"):
            timm_model("resnet18", classes=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "library", "extra"),
    [
        (lambda: torchvision_model("resnet18"), "torchvision", "vision"),
        (lambda: timm_model("resnet18"), "timm", "vision"),
        (lambda: transformers_model("microsoft/resnet-18"), "transformers", "transformers"),
    ],
)
def test_a_library_that_is_missing_or_broken_is_one_line(
    make: Any, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(error: Exception) -> Any:
        def importing(name: str) -> Any:
            raise error

        return importing

    missing = ModuleNotFoundError(f"No module named {library!r}", name=library)
    monkeypatch.setattr(importlib, "import_module", raises(missing))
    with pytest.raises(UserError) as said:
        make()
    assert str(said.value) == (
        f"models of {library} need {library}, which is not installed here: pip install 'prunefront[{extra}]'"
    )
    monkeypatch.setattr(importlib, "import_module", raises(ModuleNotFoundError("no", name="huggingface_hub.utils")))
    with pytest.raises(
        UserError, match=rf"^{library} needs the module 'huggingface_hub\.utils', which is not inst.*\['?"
    ):
        make()
    broken = RuntimeError("operator torchvision::nms\ndoes not exist")
    monkeypatch.setattr(importlib, "import_module", raises(broken))
    with pytest.raises(UserError) as said:
        make()
    assert str(said.value) == (
        f"{library} is installed here and cannot be imported with torch {torch.__version__} (RuntimeError: operator "
        "torchvision::nms does not exist): install the one that belongs to it"
    )


def test_the_place_of_a_missing_library_is_the_job_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "flowers.py").write_text(
        "from search.tasks import Task, timm_model\n\ndef task():\n    return Task(name='f', model=timm_model('x'))\n"
    )
    (tmp_path / "job.yaml").write_text("task: flowers:task\n")
    with pytest.raises(UserError, match=r"models of timm need timm, .*: pip install 'prunefront\[vision\]'$"):
        load_job(tmp_path / "job.yaml").load_task()
    sys.modules.pop("flowers", None)


def test_a_task_is_made_in_a_few_lines_and_layers_go_by_their_names(torchvision: object, tmp_path: Path) -> None:
    data = Arrays(torch.randn(12, 3, 8, 8), torch.arange(12) % 3)
    prepared = prepare(Task(name="flowers", model=torchvision_model("inception_v3", classes=3), train=data, val=data))
    model = build_model(prepared)
    check_task(prepared, model)
    (tmp_path / "job.yaml").write_text("task: flowers:task\nlayers: {exclude: [fc, 'AuxLogits.*']}\n")
    types = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert load_job(tmp_path / "job.yaml").match_layers(types) == ["features.0", "features.2"]


def test_new_last_layers() -> None:
    network = with_classes(Fully(), 4)
    assert [network.get_submodule(n).out_channels for n in ("classifier.1", "aux_classifier.1")] == [4, 4]
    assert network.get_submodule("classifier.1").bias is None
    assert [network.get_submodule(n).out_channels for n in ("classifier.0", "aux_classifier.0")] == [8, 8]
    with pytest.raises(UserError, match="ReLU holds no linear layer and no convolution: its last layer is not known"):
        with_classes(nn.ReLU(), 4)


def _real(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # a torchvision for another torch raises whatever it likes
        pytest.skip(f"{name} cannot be imported here: {type(error).__name__}: {error}")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_the_real_torchvision(name: str) -> None:
    _real("torchvision.models")
    network = torchvision_model(name, classes=5)().eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert with_classes(network, 7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_the_real_timm() -> None:
    _real("timm")
    network = timm_model("resnet18", classes=5)().eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(UserError, match="timm has no model 'resnet81': did you mean"):
        timm_model("resnet81")
