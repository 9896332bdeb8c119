"""Each rig takes its own form of a network: int8 is one of files alone, and accuracy is told of the form measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search.bench import Prepared
from search.errors import UserError
from search.job import Job
from search.remeasured import _as_on
from search.sampler import Proposal
from tests.search.fabricated import SPACE, result_of


@pytest.mark.parametrize(
    "sections",
    [
        {"rigs": ["torch-cpu"], "quantize": "search"},
        {"rigs": ["torch-cpu", "onnxruntime-cpu"], "quantize": "int8"},
        {
            "rigs": ["onnxruntime-cpu", "torch-cpu"],
            "quantize": "search",
            "budget": {"speedup": 2.0, "rig": "torch-cpu"},
        },
    ],
    ids=["decides", "decides first", "judges the budget"],
)
def test_int8_is_refused_where_a_rig_of_modules_judges(sections: dict[str, Any]) -> None:
    job = Job.model_validate({"task": "never:loaded", **sections})
    with pytest.raises(UserError, match="quantize: int8 is a form of ONNX files, and rig 'torch-cpu' measures modules"):
        Prepared.of(job)


def test_accuracy_is_that_of_the_form_which_a_rig_takes() -> None:
    params = SPACE.uniform(0.5)
    trial = replace(
        result_of(Proposal(number=0, params=params, plan=SPACE.plan(params))),
        accuracy=0.96,
        accuracy_drop=1.0,
        accuracies={"torch-cpu": 0.96, "onnxruntime-cpu": 0.95},
    )
    assert trial.accuracy_on("torch-cpu") == trial.accuracy_on("cuda") == 0.96
    assert trial.accuracy_on("onnxruntime-cpu") == trial.accuracy_on("onnxruntime-openvino") == 0.95
    shown = _as_on(trial, "onnxruntime-cpu")
    assert (shown.accuracy, shown.accuracy_drop) == (0.95, pytest.approx(2.0))
    assert _as_on(trial, "torch-cpu") is trial
    # a record of an earlier version says nothing of it
    assert replace(trial, accuracies={}).accuracy_on("onnxruntime-cpu") == 0.96
