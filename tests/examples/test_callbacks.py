"""The callbacks for Lightning and Hugging Face's Trainer: driven for real where those libraries are installed.

Last with lightning 2.6.6, transformers 5.23.0 and accelerate 1.15.0.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import admm
from admm import AdmmSettings, PruningPlan, Shrunk, attach, find_groups
from tests.admm.toys import TinyResNet, patterns, trained

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = patterns()
PLAN = PruningPlan({"stem": {"filter": 0.25}, "conv1": {"filter": 0.5, "shape": 0.3}, "head": {"unstructured": 0.5}})
SETTINGS = AdmmSettings(iterations=3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def net() -> nn.Module:
    return trained(TinyResNet, DATA).train()  # Lightning leaves modes as they are


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*DATA), batch_size=32)


def own_loop(
    net: nn.Module, batches: DataLoader[Any] | None = None, **options: Any
) -> tuple[admm.AttachedAdmm, Shrunk]:
    """What the callbacks must come to, in plain torch: three epochs in order, batches of 32."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    pruning = attach(net, optimizer, PLAN, settings=SETTINGS, **options)
    net.train()
    for _ in range(pruning.epochs):
        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        pruning.end_epoch()
    return pruning, pruning.finish(batches)


def same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("name", ["lightning_callback.py", "hf_trainer_callback.py"])
def test_a_callback_is_sound_python_and_asks_only_what_admm_offers(name: str) -> None:
    """All that can be said where the library is not installed."""
    tree = ast.parse((EXAMPLES / name).read_text())
    wanted = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "admm"
        for alias in node.names
    }
    assert {"attach", "hold_zeros"} <= wanted <= set(admm.__all__)
    methods = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.admm"
    }
    assert {"end_epoch", "finish", "state", "load_state"} <= methods
    assert all(hasattr(admm.AttachedAdmm, method) for method in methods)


def hooks_of(module: Any) -> set[str]:
    classes = (module.AdmmPruning, module.HoldZeros)
    return {name for kind in classes for name in vars(kind) if name.startswith("on_")}


class TestLightning:
    @pytest.fixture
    def library(self) -> Any:
        return pytest.importorskip("lightning.pytorch", reason="pip install lightning to drive its callback")

    @pytest.fixture
    def callback(self, library: Any) -> Any:
        from examples import lightning_callback

        return lightning_callback

    def classifier(self, library: Any, net: nn.Module) -> Any:
        class Classifier(library.LightningModule):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                loss = F.cross_entropy(self.net(batch[0]), batch[1])
                self.log("train_loss", loss, on_epoch=True)
                return loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.net.parameters(), lr=0.02, momentum=0.9)

        return Classifier()

    def fit(self, library: Any, net: nn.Module, folder: Path, *callbacks: Any, epochs: int = 9, **options: Any) -> Any:
        trainer = library.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=list(callbacks),
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=any("Checkpoint" in type(c).__name__ for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(self.classifier(library, net), DataLoader(TensorDataset(*DATA), batch_size=32), **options)
        return trainer

    def test_the_hooks_exist(self, library: Any, callback: Any) -> None:
        hooks = hooks_of(callback)
        assert hooks == {"on_train_start", "on_train_epoch_end", "on_train_end"}
        assert all(hasattr(library.Callback, hook) for hook in (*hooks, "state_dict", "load_state_dict"))

    def test_it_is_the_own_loop_bit_for_bit(self, library: Any, callback: Any, net: nn.Module, tmp_path: Path) -> None:
        twin = copy.deepcopy(net)
        pruning = callback.AdmmPruning(net, PLAN, batches=loader(), example_input=DATA[0][:1], settings=SETTINGS)
        trainer = self.fit(library, net, tmp_path, pruning)
        assert trainer.current_epoch == 3  # ended by the callback
        expected, small = own_loop(twin, loader(), example_input=DATA[0][:1])
        same(pruning.small.model, small.model)
        records = pruning.admm.trace.records
        assert [r.primal for r in records] == [r.primal for r in expected.trace.records]
        assert 0.0 < records[0].loss < 1.0  # what the module logged

    def test_a_checkpoint_takes_it_up(self, library: Any, callback: Any, net: nn.Module, tmp_path: Path) -> None:
        from lightning.pytorch.callbacks import ModelCheckpoint

        twin = copy.deepcopy(net)
        options = {"groups": find_groups(net, DATA[0][:1]), "settings": SETTINGS}
        keep = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=True, filename="{epoch}")
        first = callback.AdmmPruning(net, PLAN, **options)
        self.fit(library, net, tmp_path, first, keep, epochs=2)
        assert first.small is None
        fresh = TinyResNet()
        second = callback.AdmmPruning(fresh, PLAN, **options)
        self.fit(library, fresh, tmp_path, second, ckpt_path=tmp_path / "epoch=1.ckpt")
        assert second.admm.epoch == 3
        same(second.small.model, own_loop(twin, groups=options["groups"])[1].model)

    def test_zeros_are_held(self, library: Any, callback: Any, net: nn.Module, tmp_path: Path) -> None:
        small = own_loop(net, example_input=DATA[0][:1])[1]
        before = copy.deepcopy(small.model)
        self.fit(library, small.model, tmp_path, callback.HoldZeros(small), epochs=2)
        assert small.zeros
        for name, mask in small.zeros.items():
            weight = small.model.get_parameter(name)
            assert not bool(weight[~mask].any())
            assert not torch.equal(weight, before.get_parameter(name))


class TestHuggingFace:
    @pytest.fixture
    def library(self) -> Any:
        pytest.importorskip("accelerate", reason="pip install transformers accelerate to drive their callback")
        return pytest.importorskip("transformers", reason="pip install transformers accelerate to drive their callback")

    @pytest.fixture
    def callback(self, library: Any) -> Any:
        from examples import hf_trainer_callback

        return hf_trainer_callback

    def bert(self, library: Any, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        config = library.BertConfig(vocab_size=16, max_position_embeddings=8, num_labels=2, **sizes)
        return library.BertForSequenceClassification(config)

    def tokens(self) -> list[dict[str, Tensor]]:
        """Does the first token come again?"""
        ids = torch.randint(0, 16, (256, 6), generator=torch.Generator().manual_seed(0))
        labels = (ids[:, 1:] == ids[:, :1]).any(1).long()
        return [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]

    def plan(self) -> PruningPlan:
        layer = "bert.encoder.layer.0"
        return PruningPlan(
            {
                f"{layer}.attention.self.query": {"unstructured": 0.5},
                f"{layer}.intermediate.dense": {"filter": 0.5},
                f"{layer}.output.dense": {"unstructured": 0.5},
            }
        )

    def train(self, library: Any, model: Any, folder: Path, callback: Any, epochs: int = 9, **options: Any) -> Any:
        resume = options.pop("resume_from_checkpoint", None)
        arguments = library.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            save_strategy=options.pop("save_strategy", "no"),
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )
        trainer = library.Trainer(model, arguments, train_dataset=self.tokens(), callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    def test_the_hooks_exist(self, library: Any, callback: Any) -> None:
        hooks = hooks_of(callback)
        assert hooks == {"on_train_begin", "on_epoch_end", "on_save", "on_train_end"}
        assert all(hasattr(library.TrainerCallback, hook) for hook in hooks)

    def test_a_bert_is_pruned_and_retrained(self, library: Any, callback: Any, tmp_path: Path) -> None:
        model = self.bert(library)
        example = self.tokens()[0]["input_ids"][None]
        pruning = callback.AdmmPruning(self.plan(), example_input=example, settings=SETTINGS)
        # half a batch twice, a warm-up from zero, a rate that falls to zero
        trainer = self.train(library, model, tmp_path, pruning, epochs=5, gradient_accumulation_steps=2, warmup_steps=4)
        assert trainer.state.epoch == 3
        records = pruning.admm.trace.records
        assert [r.iteration for r in records] == [1, 2, 3]
        assert records[-1].worst[1] < records[0].worst[1]
        small = pruning.small
        assert small.model.bert.encoder.layer[0].intermediate.dense.out_features == 32
        assert len(small.zeros) == 2
        self.train(library, small.model, tmp_path, callback.HoldZeros(small), epochs=1)
        for name, mask in small.zeros.items():
            assert not bool(small.model.get_parameter(name)[~mask].any())

    def test_a_checkpoint_takes_it_up(self, library: Any, callback: Any, tmp_path: Path) -> None:
        groups = find_groups(self.bert(library), self.tokens()[0]["input_ids"][None])
        steady = {"lr_scheduler_type": "constant", "save_strategy": "epoch"}

        def pruning() -> Any:
            return callback.AdmmPruning(self.plan(), groups=groups, settings=SETTINGS)

        whole = pruning()
        self.train(library, self.bert(library), tmp_path / "whole", whole, **steady)
        checkpoint = tmp_path / "whole" / "checkpoint-16"
        assert (checkpoint / "admm.safetensors").is_file()
        second = pruning()
        self.train(
            library, self.bert(library, seed=1), tmp_path / "whole", second, resume_from_checkpoint=checkpoint, **steady
        )
        assert second.admm.epoch == 3
        records = [[r.primal for r in pruning.admm.trace.records] for pruning in (whole, second)]
        assert records[0] == records[1]
        same(second.small.model, whole.small.model)
