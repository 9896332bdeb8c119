"""What the file of a trial computes in: fp32 as it was trained, or int8 by static quantisation as the last step."""

from __future__ import annotations

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["fp32", "int8"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
