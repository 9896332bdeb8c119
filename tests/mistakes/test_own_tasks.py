"""Mistakes in a user's own module: network, data, loss and metric, all told before anything is trained."""

# ruff: noqa: E501  (one mistake a line: what was written beside what is said)

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mistakes.typed import Mistake, typed, wrong


def own(function: str, *says: str, shapes: bool = False) -> Mistake:
    """A job whose task is a function of `wrong`, the module beside these tests."""
    return wrong(f"task: wrong:{function}", *says, shapes=shapes)


NAMES = [
    wrong("task: smal:task", "bad.yaml:1: task: there is no module 'smal'", "did you mean 'small'?"),
    wrong("task: digits:task", "bad.yaml:1: task: there is no module 'digits'", "did you mean 'search.tasks.digits'?"),
    wrong("task: small:tsak", "bad.yaml:1: task: small", "holds no function 'tsak'", "did you mean 'task'?"),
    wrong("task: small", "bad.yaml:1: task: must read module:function, got 'small': for example search.tasks.digits:task"),
    wrong("task: small.py:task", "'small.py:task' names a file: name its module, small:task"),
    wrong("task_args: {width: wide}", "task 'bars': model() raised TypeError"),
    own("fails", "wrong.py:19: task 'wrong:fails' raised ValueError: no such file: data.npz"),
    own("leaves", "task 'wrong:leaves' raised SystemExit: set DATA first"),
    own("gives_a_number", "wrong:gives_a_number must return a search.tasks.Task, got int"),
    own("gives_the_network", "wrong:gives_the_network must return a search.tasks.Task, got Network"),
    typed("search bad.yaml", "half.py:2: SyntaxError: ", bad_yaml="task: half:task\n", half_py="import small\ndef task(:\n"),
    typed("search bad.yaml", "needs.py:1: importing 'needs' needs the module 'no_such_library', which is not installed here", bad_yaml="task: needs:task\n", needs_py="import no_such_library\n"),
    typed("search job.yaml", "search.py has the name of a package of prunefront, 'search': rename it", search_py=""),
    typed("search job.yaml", "admm.py has the name of a package of prunefront, 'admm': rename it", admm_py=""),
]  # fmt: skip

NETWORKS = [
    own("network_not_function", "Task.model must be a function that builds the network, not the network itself"),
    own("model_fails", "task 'bars': model() raised FileNotFoundError: ", "weights.pt"),
    own("no_tensor", "task 'bars': the network must return one tensor, or a dict, dataclass or tuple with one: got dict with no tensor in it"),
    own("two_tensors", "returns dict with the tensors 'scores', 'features': say which one counts with Task(output='scores', ...)"),
    own("unexportable", "task 'bars': the model cannot be exported: in the forward of Unexportable itself, whose path depends on the data: ", "torch.export must follow its forward, or a rig of modules decide (rigs: [torch-cpu])", shapes=True),
    own("no_layers", "Flatten has no layer that can be pruned: it needs a convolution or a Linear"),
    own("broken_weights", "task 'bars': the network gives NaN or infinity: are its weights right?"),
    own("frozen", "all 3 chosen layers are frozen, 'stem' first: requires_grad_(True) on those that may be pruned"),
    own("hopeless", "the dense network reaches", "below dense.min_accuracy 0.99: train longer (dense.epochs 1)"),
]  # fmt: skip

DATA = [
    own("empty", "Arrays: no samples given: was the right file read, and all of it filtered out?"),
    own("no_batches", "val gives no batches: give data that can be read more than once"),
    own("read_once", "val is a generator, which can be read only once: give a list of batches, Arrays, a Dataset"),
    own("not_a_number", "task 'bars': the train inputs hold NaN or infinity in 1 of 320 samples, first in sample 17: clean the data"),
    own("infinite", "Arrays: x holds values that are not finite: clean the data first"),
    own("lengths_differ", "x and y must hold the same samples along axis 0, got shapes (40, 1, 12, 12) and (39,)"),
    own("colours", "fails on example_input of shape [1, 3, 12, 12] (torch.float32): ", "to have 1 channels, but got 3 channels", "give it inputs of the shape and type that it takes"),
    own("bytes_of_an_image", "fails on example_input of shape [1, 1, 12, 12] (torch.uint8): ", "give it inputs of the shape and type that it takes"),
    own("too_many_classes", "the training labels hold class 4, and the network has 4 outputs, for classes 0 to 3: give it an output for each class"),
    own("numbered_from_one", "the validation labels hold class 4, and the network has 4 outputs", "or number them from 0"),
    own("float_labels", "the loss fails on outputs [40, 4] and targets [40] (torch.float32)", "give it targets that it takes, or a loss of your own"),
    own("loss_a_sample", "the loss must give one value, the mean over the batch; on outputs [40, 4]", "it gives [40]"),
    own("metric_in_percent", "the metric must be a number of at most 1, it gives 100 for a sample", "a percentage: divide by 100"),
    own("metric_of_the_batch", "the metric must give one value a sample, [20]", "it gives []"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", [*NAMES, *NETWORKS, *DATA], ids=str)
def test_a_task_that_is_wrong(here: Path, capfd: pytest.CaptureFixture[str], mistake: Mistake) -> None:
    mistake.make(here, capfd)
