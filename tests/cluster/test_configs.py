"""The cluster files, checked offline: by Ray's own validator, by the models of `manifests`, and against each other."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import ray.scripts.scripts
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.job.cli import submit

from search.cli import app
from search.job_file import load_job
from tests.cluster.manifests import ClusterSpec, Ec2Node, RayCluster, RayJob, VolumeClaim

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "cluster.md"
EXAMPLES = ROOT / "examples" / "cluster"
LAUNCHER = [ROOT / "cluster.yaml", EXAMPLES / "on_premise.yaml"]
KUBERAY = [EXAMPLES / "kuberay_cluster.yaml", EXAMPLES / "kuberay_job.yaml"]
#: Everything that starts Ray, or says what is to be started.
FILES = [*LAUNCHER, *KUBERAY, EXAMPLES / "Dockerfile"]
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def kuberay(path: Path) -> ClusterSpec:
    """The cluster that a manifest describes, each of its documents checked."""
    found = []
    for content in documents(path):
        if content["kind"] == "RayCluster":
            found.append(RayCluster.model_validate(content).spec)
        elif content["kind"] == "RayJob":
            found.append(RayJob.model_validate(content).spec.rayClusterSpec)
        else:
            VolumeClaim.model_validate(content)
    [spec] = found
    return spec


def pinned(package: str) -> str:
    [version] = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_rays_launcher_takes_it(path: Path) -> None:
    validate_config(prepare_config(read(path)))


def test_rays_launcher_would_refuse_a_mistake() -> None:
    broken = read(ROOT / "cluster.yaml")
    broken["available_node_types"]["gpu_worker"]["resources"]["GPU"] = 0.25  # a fraction is a trial's, not a node's
    with pytest.raises(Exception, match=r"0\.25 is not of type 'integer'"):
        validate_config(prepare_config(broken))


def test_node_settings_are_those_of_ec2() -> None:
    for kind in read(ROOT / "cluster.yaml")["available_node_types"].values():
        Ec2Node.model_validate(kind["node_config"])


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberays_fields(path: Path) -> None:
    spec = kuberay(path)
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        pod = group.template.spec
        volumes = {volume.name for volume in pod.volumes}
        for container in pod.containers:
            assert {mount.name for mount in container.volumeMounts} <= volumes
            assert container.resources.requests == container.resources.limits  # whole processors, and no eviction
        claims = {v.persistentVolumeClaim.claimName for v in pod.volumes if v.persistentVolumeClaim}
        assert claims == ({"prunefront-runs"} if group is spec.headGroupSpec else set())  # of one node at a time


def starts(command: str) -> Iterator[str]:
    """Each call of `ray start` or `ray stop` in a shell command, with what stands before it."""
    for part in re.split(r";|&&|\|\|", command):
        if re.search(r"\bray (start|stop)\b", part):
            yield part


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_every_start_command_sets_the_token_mode(path: Path) -> None:
    prepared = prepare_config(read(path))  # with Ray's defaults, which start without one
    calls = [call for key in COMMANDS for command in prepared.get(key, []) for call in starts(command)]
    assert sum("ray start" in call for call in calls) >= 2
    for call in calls:
        assert re.search(r"RAY_AUTH_MODE=token \S*ray (start|stop)\b", call), call
    assert any(local == "~/.ray/auth_token" for local in prepared["file_mounts"].values())
    assert "chmod 600 ~/.ray/auth_token" in prepared["setup_commands"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_every_pod_is_in_token_mode(path: Path) -> None:
    spec = kuberay(path)
    assert spec.authOptions.mode == "token"
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        for container in group.template.spec.containers:
            assert {env.name: env.value for env in container.env}["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("path", [*FILES, DOCS], ids=lambda path: path.name)
def test_no_file_holds_a_token_or_opens_the_dashboard(path: Path) -> None:
    text = path.read_text()
    assert "--dashboard-host=0.0.0.0" not in text
    assert not re.search(r"\b[0-9a-f]{64}\b", text)
    assert not re.search(r"RAY_AUTH_TOKEN=\S*[0-9a-f]{8}", text)


@pytest.mark.parametrize("path", [*FILES, DOCS], ids=lambda path: path.name)
def test_versions_are_those_of_the_constraints(path: Path) -> None:
    text = path.read_text()
    rays = re.findall(r"ray\[default\]==([\d.]+)|rayproject/ray:([\d.]+)|rayVersion: ([\d.]+)", text)
    assert rays
    assert {version for found in rays for version in found if version} == {pinned("ray")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"/prunefront:([\w.]+)", text)) <= {project["version"]}


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("path", [*LAUNCHER, DOCS], ids=lambda path: path.name)
def test_ray_knows_every_option_of_ray_start(path: Path) -> None:
    said = re.findall(r"\bray start\b([^\n;`#]*)", path.read_text())
    used = {option for rest in said for option in re.findall(r"--[a-z-]+", rest)}
    assert used
    assert used <= options(ray.scripts.scripts.start)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_ray_knows_every_parameter_of_a_pod(path: Path) -> None:
    spec = kuberay(path)
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        assert {f"--{name}" for name in group.rayStartParams} <= options(ray.scripts.scripts.start)


def test_every_command_in_the_document_is_one() -> None:
    text = DOCS.read_text()
    search: click.Command = typer.main.get_command(app).commands["search"]  # type: ignore[attr-defined]
    searches = re.findall(r"prunefront search\b([^\n`#|]*)", text)
    assert {o for rest in searches for o in re.findall(r"--[a-z-]+", rest)} <= options(search)
    jobs = re.findall(r"ray job submit\b([^\n`]*?) -- ", text)
    assert jobs
    assert {o for rest in jobs for o in re.findall(r"--[a-z-]+", rest)} <= options(submit)
    files = set(re.findall(r"(?:examples/cluster/)[\w.]+|\bcluster\.yaml\b", text))
    assert files
    assert all((ROOT / name).is_file() for name in files)


def nodes_of(path: Path) -> dict[str, dict[str, float]]:
    """What each kind of node offers Ray, by its name."""
    if path in KUBERAY:
        offered = {}
        for group in kuberay(path).workerGroupSpecs:
            limits = group.template.spec.containers[0].resources.limits
            own = json.loads(json.loads(group.rayStartParams.get("resources", '"{}"')))
            cpus = group.rayStartParams.get("num-cpus", limits["cpu"])
            offered[group.groupName] = {"CPU": float(cpus), "GPU": float(limits.get("nvidia.com/gpu", "0")), **own}
        return offered
    return {name: kind["resources"] for name, kind in read(path)["available_node_types"].items()}


@pytest.mark.parametrize("path", [ROOT / "cluster.yaml", *KUBERAY], ids=lambda path: path.name)
def test_the_nodes_offer_what_the_job_asks_for(path: Path) -> None:
    job = load_job(EXAMPLES / "job.yaml")
    nodes = nodes_of(path)
    for rig in job.rigs:
        [measuring] = [node for node in nodes.values() if node.get(str(rig.resource), 0) >= 1]
        assert measuring["CPU"] == 0  # nothing trains beside a measurement
    cpus, gpus = job.resources.cpus_per_trial, job.resources.gpus_per_trial
    assert 0 < gpus < 1
    training = [node for node in nodes.values() if node.get("GPU", 0) >= gpus and node["CPU"] >= cpus]
    assert training
    for node in training:
        assert min(node["CPU"] // cpus, node["GPU"] // gpus) >= 2  # several trials a card


def test_on_premise_the_marked_machine_measures_and_does_not_train() -> None:
    [start] = [c for c in read(EXAMPLES / "on_premise.yaml")["worker_start_ray_commands"] if "ray start" in c]
    [rig] = [call for call in starts(start) if "--resources" in call]
    job = load_job(EXAMPLES / "job.yaml")
    [offered] = re.findall(r"--resources='([^']+)'", rig)
    assert json.loads(offered) == {job.deciding_rig.resource: 1}
    assert "--num-cpus=0" in rig


def test_the_entrypoint_is_a_command_of_ours() -> None:
    [content] = documents(EXAMPLES / "kuberay_job.yaml")
    spec = RayJob.model_validate(content).spec
    folder, storage = re.findall(r"prunefront search (\S+) --address auto", spec.entrypoint), "/mnt/runs"
    assert folder == [f"{storage}/cluster-search"]
    assert f"--name cluster-search --storage {storage} --address auto" in spec.entrypoint
    head = spec.rayClusterSpec.headGroupSpec.template.spec.containers[0]
    assert storage in {mount.mountPath for mount in head.volumeMounts}
