"""Reads TensorBoard's event files: records of [length, check, content, check], each an `Event`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2


def events(folder: Path) -> Iterator[Any]:
    """All events of the files in a folder, in their order."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event()
            event.ParseFromString(content[at + 12 : at + 12 + length])
            yield event
            at += 16 + length


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every figure, by its name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def parameters(folder: Path) -> dict[str, Any]:
    """What the trial was asked, as TensorBoard's page of hyperparameters reads it."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    found: dict[str, Any] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                told = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for name, of in told.session_start_info.hparams.items():
                    found[name] = of.string_value or of.number_value
    return found
