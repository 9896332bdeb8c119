"""Where rigs measure: their own machine, the driver's, or the driver's for want of one."""

from __future__ import annotations

from typing import Any

from search.job import Job, RigSpec
from search.places import placed


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "NodeManagerAddress": f"10.0.0.{ord(name[-1])}", "Resources": resources}


def job(*rigs: RigSpec) -> Job:
    return Job(task="a:b", rigs=rigs or (RigSpec(name="onnxruntime-cpu"),))


def test_a_machine_of_its_own() -> None:
    found = placed(job(), [node("d", CPU=4), node("r", latency_rig=1)], "d")
    [place] = found.places
    assert (place.resource, place.node, place.here, place.rigs) == ("latency_rig", None, False, ("onnxruntime-cpu",))
    assert found.elsewhere == ("onnxruntime-cpu",)
    assert found.notes == (
        f"measuring onnxruntime-cpu on {node('r')['NodeManagerAddress']}, which offers 'latency_rig'",
    )


def test_the_drivers_machine_if_it_offers_one_too() -> None:
    found = placed(job(), [node("r", latency_rig=1), node("d", CPU=4, latency_rig=1)], "d")
    [place] = found.places
    assert (place.resource, place.node, place.here) == ("latency_rig", "d", True)
    assert found.elsewhere == ()
    assert found.notes == ()


def test_none_at_all_is_the_drivers_with_a_warning() -> None:
    found = placed(job(), [node("d", CPU=4), node("r", alive=False, latency_rig=1), node("w", latency_rig=0.5)], "d")
    [place] = found.places
    assert (place.resource, place.node, place.here) == (None, "d", True)
    [note] = found.notes
    assert note.startswith("warning: no node offers 'latency_rig': measuring on the driver's machine")
    assert "when all training has ended, its front is measured again" in note


def test_the_drivers_by_wish_is_no_warning() -> None:
    found = placed(job(RigSpec(name="onnxruntime-cpu", resource=None)), [node("d"), node("r", latency_rig=1)], "d")
    assert found.places[0].here
    assert found.notes == ()


def test_rigs_of_one_resource_take_turns_and_others_have_their_own() -> None:
    rigs = (
        RigSpec(name="onnxruntime-cpu"),
        RigSpec(name="cuda", resource="gpu_rig"),
        RigSpec(name="torch-cpu"),
        RigSpec(name="onnxruntime-openvino", resource="edge_rig"),
    )
    found = placed(job(*rigs), [node("d"), node("g", gpu_rig=1), node("h", gpu_rig=1), node("r", latency_rig=2)], "d")
    assert {place.resource: place.rigs for place in found.places} == {
        "latency_rig": ("onnxruntime-cpu", "torch-cpu"),
        "gpu_rig": ("cuda",),
        None: ("onnxruntime-openvino",),
    }
    assert set(found.elsewhere) == {"onnxruntime-cpu", "torch-cpu", "cuda"}
    assert any("or 1 more, which offers 'gpu_rig'" in note for note in found.notes)
    assert any("no node offers 'edge_rig'" in note for note in found.notes)


def test_rigs_without_a_machine_share_the_drivers_as_one_place() -> None:
    rigs = (RigSpec(name="onnxruntime-cpu", resource="a"), RigSpec(name="torch-cpu", resource=None))
    found = placed(job(*rigs), [node("d")], "d")
    [place] = found.places  # one actor: they must not measure side by side
    assert place.rigs == ("onnxruntime-cpu", "torch-cpu")
