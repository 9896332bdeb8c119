"""From `module:function` in a job file to the user's own code, and from its mistakes to one line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from search.errors import UserError
from search.spelling import nearest, suggest
from search.tasks.data import isolated_rng

#: The names of the installed packages: a user's file of that name would shadow them on a worker.
OWN_PACKAGES = ("search", "admm", "evaluators")
#: The tasks that come with the program, each a module of `search.tasks` with a function `task`.
BUILTIN = ("cifar10", "digits", "mnist")
#: Not the search's seed: what the user's code draws without a seed, such as its split, is the same in every process.
TASK_SEED = 0

_user_folder: str | None = None
_user_modules: set[str] = set()


def call_task_function(spec: str, task_args: Mapping[str, Any], base_dir: Path) -> object:
    """Import the function that `spec` names and call it with `task_args`; raises `UserError`, one line.

    Both see torch's, NumPy's and Python's global generators at `TASK_SEED`; these are put back after.
    """
    module_name, _, function_name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise UserError(f"task: must read module:function, got {spec!r}: for example search.tasks.digits:task")
    if module_name.endswith(".py"):
        module_name = module_name.removesuffix(".py")
        raise UserError(f"task: {spec!r} names a file: name its module, {module_name}:{function_name}")
    folder = base_dir.resolve()
    refuse_shadowing(folder)
    module = _import(module_name, folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        own = [n for n in names if getattr(module, n).__module__ == module.__name__]
        what = "no function" if function is None else "something that is not a function"
        raise UserError(
            f"task: {module_name} ({module.__file__}) holds {what} {function_name!r}: "
            f"{suggest(function_name, own or names)}"
        )
    _check_arguments(spec, function, task_args)
    try:
        with isolated_rng(TASK_SEED):
            return function(**task_args)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{_place(error, folder)}: task {spec!r} raised {_say(error)}") from error


def import_task_module(spec: str, base_dir: Path) -> ModuleType:
    """The module that `spec` names, found as `call_task_function` finds it; raises `UserError`, one line."""
    return _import(spec.partition(":")[0], base_dir.resolve())


def refuse_shadowing(folder: Path) -> None:
    """Raise `UserError` where the user's folder holds a module with the name of one of our packages."""
    for name in OWN_PACKAGES:
        ours = importlib.util.find_spec(name)
        homes = {str(Path(p).resolve()) for p in (ours.submodule_search_locations or ())} if ours else set()
        as_file, as_folder = folder / f"{name}.py", folder / name
        found = as_file if as_file.is_file() else None
        if found is None and as_folder.is_dir() and str(as_folder.resolve()) not in homes:
            found = as_folder if any(as_folder.glob("*.py")) else None
        if found is not None:
            raise UserError(f"{found} has the name of a package of prunefront, {name!r}: rename it")


def _import(name: str, folder: Path) -> ModuleType:
    """Import a module with the user's folder at the end of the path: nothing installed is shadowed."""
    _enter(folder)
    before = set(sys.modules)
    try:
        with isolated_rng(TASK_SEED):
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"{_place(error, folder)}: importing {name!r} needs the module {error.name!r}, "
                f"which is not installed here"
            ) from error
        if not folder.is_dir():
            raise UserError(f"base_dir: there is no folder {folder}, and no installed module {name!r}") from None
        raise UserError(
            f"task: there is no module {name!r} in {folder} nor installed: {suggest(name, _modules(folder))}"
        ) from None
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{_place(error, folder)}: importing {name!r} raised {_say(error)}") from error
    finally:
        fresh = [name for name in set(sys.modules) - before if name.partition(".")[0] not in OWN_PACKAGES]
        _user_modules.update(name for name in fresh if _lies_in(sys.modules.get(name), folder))
    beside = _beside(name, folder)
    if beside is not None and not _lies_in(module, folder):
        raise UserError(
            f"task: {name!r} is an installed module ({getattr(module, '__file__', 'built in')}), "
            f"which hides {beside}: rename your file"
        )
    return module


def _enter(folder: Path) -> None:
    """Put `folder` at the end of `sys.path`, leaving the folder of a job read earlier in this process.

    Two jobs may both have a `my_model.py`: the modules of the earlier one are forgotten, or the later job
    would silently get them.
    """
    global _user_folder
    path = str(folder)
    if _user_folder not in (None, path):
        for name in _user_modules:
            sys.modules.pop(name, None)
        _user_modules.clear()
        if _user_folder in sys.path:
            sys.path.remove(_user_folder)
        _user_folder = None
    if path not in sys.path:
        sys.path.append(path)
        _user_folder = path
    importlib.invalidate_caches()


def _beside(name: str, folder: Path) -> Path | None:
    """The user's file or package that the first part of `name` could mean."""
    root = name.partition(".")[0]
    if root in OWN_PACKAGES:
        return None
    candidates = (folder / f"{root}.py", folder / root / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        places = [Path(path).resolve() for path in getattr(module, "__path__", ())]
        return any(place.is_relative_to(folder) for place in places)
    path = Path(file).resolve()
    return path.is_relative_to(folder) and "site-packages" not in path.relative_to(folder).parts


def _modules(folder: Path) -> list[str]:
    """Names that a task could be imported by: the user's own, then the built-in tasks."""
    own = [path.stem for path in sorted(folder.glob("*.py"))]
    own += [path.parent.name for path in sorted(folder.glob("*/__init__.py"))]
    return own + [f"search.tasks.{name}" for name in BUILTIN]


def _check_arguments(spec: str, function: Any, task_args: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in task_args:
        if key not in named and not takes_any:
            match = nearest(key, named)
            mend = f"did you mean {match!r}?" if match else f"it takes {', '.join(named) or 'nothing'}"
            raise UserError(f"task_args.{key}: {spec} takes no such argument; {mend}")
    try:
        signature.bind(**task_args)
    except TypeError as error:
        raise UserError(f"task_args: {spec}: {error}") from None


def _say(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException, folder: Path) -> str:
    """`file:line` of the deepest frame in the user's folder, or of the deepest at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(folder)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"
