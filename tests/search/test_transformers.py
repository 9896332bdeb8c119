"""Image classifiers of transformers, small and untrained, from a configuration to a pruned and exported network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from admm.pipeline import prune
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from evaluators import check_parity, export_onnx
from search.errors import UserError
from search.job import Job
from search.profile import profile_network
from search.tasks import Arrays, Task, check_task, prepare, transformers_model
from search.tasks.base import PreparedTask
from search.tasks.dense import build_model

transformers: Any = pytest.importorskip("transformers", reason="the extra [transformers] is not installed")
CLASSES = 3


def resnet() -> Any:
    return transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")


def vit() -> Any:
    return transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4
    )


def swin() -> Any:
    return transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )


def mobilenet() -> Any:
    return transformers.MobileNetV2Config(depth_multiplier=0.35, image_size=32)


def prepared_task(source: Any, side: int) -> tuple[PreparedTask, nn.Module]:
    y = torch.arange(24) % CLASSES
    x = torch.randn(24, 3, side, side, generator=torch.Generator().manual_seed(0)) + y[:, None, None, None]
    data = Arrays(x, y)
    task = Task(name="flowers", model=transformers_model(source, classes=CLASSES), train=data, val=data, batch_size=12)
    prepared = prepare(task)
    model = build_model(prepared)
    check_task(prepared, model)
    return prepared, model


def pruned(prepared: PreparedTask, model: nn.Module, plan: PruningPlan, path: Path) -> nn.Module:
    """Pruned by the plan and exported; ONNX Runtime says what the small module says."""
    done = prune(
        model,
        plan,
        train_batches=prepared.train_batches,
        example_input=prepared.example_input,
        admm=AdmmSettings(iterations=1, lr=1e-3),
        finetune=FinetuneSettings(epochs=1, lr=1e-3),
    )
    export_onnx(done.model, prepared.example_input, path)
    x, _ = next(prepared.val_batches())
    assert check_parity(done.model, path, [x]).require().samples == len(x)
    return done.model


def profile(model: nn.Module, example: Tensor, **layers: Any) -> Any:
    job = Job.model_validate({"task": "a:b", "sparsity": {"align": 8}, **layers})
    return profile_network(job, model, example)


def test_a_resnet_from_its_configuration_to_a_smaller_file(tmp_path: Path) -> None:
    config = resnet()
    prepared, model = prepared_task(config, 32)
    assert config.num_labels == 2, "the user's own object stays as it is"
    found = profile(model, prepared.example_input, layers={"exclude": ["*shortcut*"]})
    assert "classifier.1: filters stay: its filters are the network's output" in found.notes
    assert not any("shortcut" in layer for layer in found.layers)
    stem, inner = "resnet.embedder.embedder.convolution", "resnet.encoder.stages.1.layers.0.layer.0.convolution"
    assert {stem, inner} <= set(found.groups.groups)
    weights = sum(p.numel() for p in model.parameters())
    small = pruned(prepared, model, PruningPlan({stem: {"filter": 0.5}, inner: {"filter": 0.5}}), tmp_path / "m.onnx")
    assert small.get_submodule(stem).out_channels == 8
    assert small.get_submodule(inner).out_channels == 16
    assert sum(p.numel() for p in small.parameters()) < 0.7 * weights
    assert type(small(prepared.example_input)) is Tensor, "loss, metric and file see the logits alone"


def test_a_vision_transformer_says_what_stays_and_is_pruned_where_it_can_be(tmp_path: Path) -> None:
    prepared, model = prepared_task(vit(), 16)
    found = profile(model, prepared.example_input, structures=["filter", "unstructured"])
    hidden = [f"vit.layers.{i}.mlp.fc1" for i in range(2)]
    assert list(found.groups.groups) == hidden
    named = {layer: note for note in found.notes for layer in found.layers if note.startswith(f"{layer}: filters stay")}
    assert set(named) == set(found.layers) - set(hidden), "each of the others, with its reason"
    assert "LayerNorm" in named["vit.embeddings.patch_embeddings.projection"]
    assert "the compacted network does not run" in named["vit.layers.0.attention.q_proj"]
    still = {(d.layer, d.structure) for d in found.space.dimensions}
    assert {("vit.layers.0.attention.q_proj", "unstructured"), (hidden[0], "filter")} <= still
    plan = PruningPlan({hidden[0]: {"filter": 0.5}, "vit.layers.1.attention.q_proj": {"unstructured": 0.5}})
    small = pruned(prepared, model, plan, tmp_path / "m.onnx")
    assert small.get_submodule(hidden[0]).out_features == 32
    query = small.get_submodule("vit.layers.1.attention.q_proj").weight
    assert float((query == 0.0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_attention_is_written_out_so_that_it_exports(tmp_path: Path) -> None:
    """Swin's fused kernel does not trace at a free batch, nor at one of one."""
    prepared, model = prepared_task(swin(), 16)
    path = export_onnx(model, prepared.example_input, tmp_path / "m.onnx")
    assert check_parity(model, path, [next(prepared.val_batches())[0]]).ok
    assert "stands outside a known layer" in " ".join(profile(model, prepared.example_input).notes)


@pytest.mark.slow
def test_a_mobilenet(tmp_path: Path) -> None:
    prepared, model = prepared_task(mobilenet(), 32)
    found = profile(model, prepared.example_input)
    assert [note for note in found.notes if "filters stay" in note] == [
        "classifier: filters stay: its filters are the network's output"
    ]
    name = "mobilenet_v2.layer.0.expand_1x1.convolution"
    small = pruned(prepared, model, PruningPlan({name: {"filter": 0.5}}), tmp_path / "m.onnx")
    assert small.get_submodule(name).out_channels == 24
    assert small.get_submodule("mobilenet_v2.layer.0.conv_3x3.convolution").out_channels == 24


def test_trained_weights_from_a_folder_with_classes_of_one_s_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = transformers_model(resnet(), classes=7)()
    trained.bfloat16().save_pretrained(tmp_path / "trained")  # type: ignore[operator]
    capfd.readouterr()
    level = transformers.utils.logging.get_verbosity()
    model = transformers_model(tmp_path / "trained", classes=CLASSES)()
    assert capfd.readouterr() == ("", ""), "a search builds its network often: once would be enough to be told"
    assert transformers.utils.logging.get_verbosity() == level
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(model.get_parameter(stem), trained.get_parameter(stem).float())
    assert model.get_parameter("classifier.1.weight").shape[0] == CLASSES
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    again = transformers_model(str(tmp_path / "trained"), pretrained=False)()
    assert again.get_parameter("classifier.1.weight").shape[0] == 7
    assert not torch.equal(again.get_parameter(stem), model.get_parameter(stem))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"^the image classifier '.*empty' cannot be had: (OSError|ValueError): "
    ) as said:
        transformers_model(tmp_path / "empty")()
    assert "\n" not in str(said.value)
    with pytest.raises(
        UserError, match="the image classifier 'BertConfig' cannot be had: ValueError: Unrecognized con"
    ):
        transformers_model(transformers.BertConfig())()
    with pytest.raises(UserError, match="transformers_model takes a name, a folder or a configuration, got int"):
        transformers_model(18)
    with pytest.raises(UserError, match="classes must be a whole number of at least 1, got 0"):
        transformers_model(resnet(), classes=0)
