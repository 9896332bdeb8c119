"""The `Task` protocol, and tasks that are ready to run: readable examples of a user's side.

Needs torch and NumPy only.
"""

from search.tasks.base import DenseRecipe, PreparedTask, Task, check_task, load_task, prepare, top1
from search.tasks.data import Arrays
from search.tasks.libraries import timm_model, torchvision_model, transformers_model, with_classes

__all__ = [
    "Arrays",
    "DenseRecipe",
    "PreparedTask",
    "Task",
    "check_task",
    "load_task",
    "prepare",
    "timm_model",
    "top1",
    "torchvision_model",
    "transformers_model",
    "with_classes",
]
