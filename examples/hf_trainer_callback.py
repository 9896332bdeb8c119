"""ADMM pruning under Hugging Face's `Trainer`; transformers itself is not a dependency of prunefront.

    pruning = AdmmPruning(plan, example_input=input_ids[:1], settings=AdmmSettings(iterations=5))
    Trainer(model, TrainingArguments(..., num_train_epochs=5), train_dataset=data, callbacks=[pruning]).train()
    small = pruning.small                                  # as AttachedAdmm.finish() returns it
    Trainer(small.model, arguments, train_dataset=data, callbacks=[HoldZeros(small)]).train()

Training ends with the last ADMM epoch. With `save_strategy="epoch"` each checkpoint folder carries the state of ADMM in
a file beside the Trainer's own, and `train(resume_from_checkpoint=...)` takes it up. The Trainer's default schedule
falls to zero: leave ADMM some rate to work with, as `lr_scheduler_type="constant"` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from admm import AttachedAdmm, PruningPlan, Shrunk, Target, attach, hold_zeros, read_state, save_state


class AdmmPruning(TrainerCallback):
    """Prunes the Trainer's model by `plan` while it trains; `options` are those of `admm.attach`."""

    def __init__(self, plan: PruningPlan | Target, **options: Any) -> None:
        self.plan, self.options = plan, options
        self.admm: AttachedAdmm | None = None
        self.small: Shrunk | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.admm = attach(kwargs["model"], kwargs["optimizer"], self.plan, **self.options)
        if state.global_step > 0:  # resumed
            self.admm.load_state(*read_state(_file(args, state)))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.admm is not None
        self.admm.end_epoch()
        control.should_training_stop |= self.admm.done

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.admm is not None
        if state.is_world_process_zero:
            save_state(_file(args, state), *self.admm.state())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.admm is not None
        if self.admm.done:
            self.small = self.admm.finish()


class HoldZeros(TrainerCallback):
    """Keeps the zeros of a pruned model while a Trainer retrains it."""

    def __init__(self, small: Shrunk) -> None:
        self.small = small

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        hold_zeros(kwargs["model"], kwargs["optimizer"], self.small.zeros)


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / "admm.safetensors"
