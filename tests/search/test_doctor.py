"""What the doctor says of a machine, sound and not."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from evaluators import rig_names
from search import doctor
from search.cli import run
from search.doctor import Finding, findings


def of(area: str, storage: Path) -> list[Finding]:
    return [finding for finding in findings(storage) if finding.area == area]


@pytest.fixture(autouse=True)
def _a_machine_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_all_areas_in_their_order_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["doctor"]) == 0
    said, complaint = capfd.readouterr()
    assert complaint == ""
    areas = [line.split("  ")[0] for line in said.splitlines() if not line.startswith(" ")]
    assert areas == ["versions", "devices", "rigs", "channel block", "Ray", "token", "storage"]
    assert list(tmp_path.iterdir()) == []
    assert run(["doctor", "--json"]) == 0
    content = json.loads(capfd.readouterr().out)
    assert content["well"] is True
    words = " ".join(finding["what"] for finding in content["findings"])
    assert f"onnxruntime {version('onnxruntime')}" in words
    assert all(name in words for name in rig_names())
    assert all(finding["mend"] for finding in content["findings"] if finding["verdict"] != "ok")


def test_a_package_that_is_missing_is_named_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def without_plotly(name: str) -> str:
        if name == "plotly":
            raise PackageNotFoundError
        return version(name)

    monkeypatch.setattr(doctor, "version", without_plotly)
    assert run(["doctor", "--storage", str(tmp_path)]) == 2
    said = capfd.readouterr().out
    assert "plotly is not installed" in said
    assert "-> pip install plotly" in said


def test_a_channel_block_is_told_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = of("channel block", tmp_path)
    assert finding.what.startswith("16 channels, depthwise 16 (onnxruntime-cpu"), "the tests' own cache"
    monkeypatch.setenv("PRUNEFRONT_CACHE", str(tmp_path / "cache"))
    (finding,) = of("channel block", tmp_path)
    assert finding.what == f"not measured yet on this device; kept in {tmp_path / 'cache'}"
    assert not (tmp_path / "cache").exists()


def test_an_address_where_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = of("Ray", tmp_path)
    assert (finding.verdict, finding.what) == (
        "ok",
        "no Ray cluster runs on this machine: a search starts its own, and stops it",
    )
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (finding,) = of("Ray", tmp_path)
    assert finding.verdict == "note"
    assert finding.what == "RAY_ADDRESS is '127.0.0.1:1', and no cluster answers there"


def test_the_token_in_each_of_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def token() -> tuple[str, str]:
        (finding,) = of("token", tmp_path)
        return finding.verdict, finding.what

    path = tmp_path / "home" / ".ray" / "auth_token"
    assert token() == ("ok", f"none yet: Ray makes {path} when it starts here")
    path.parent.mkdir(parents=True)
    path.write_text("secret")
    path.chmod(0o600)
    assert token() == ("ok", f"{path}, readable by you alone")
    path.chmod(0o644)
    assert token() == ("note", f"{path} can be read by others")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    assert token() == ("missing", f"RAY_AUTH_TOKEN_PATH is {tmp_path / 'absent'}, which cannot be read")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert token() == ("ok", "from RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    verdict, what = token()
    assert verdict == "note"
    assert "whoever reaches Ray's ports can run code here" in what
    assert all("secret" not in finding.what + finding.mend for finding in findings(tmp_path))


def test_storage_that_is_not_there_yet_is_no_file_or_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = of("storage", tmp_path / "a" / "b")
    assert finding.what.startswith(f"{tmp_path / 'a' / 'b'} (to be made in {tmp_path}), ")
    (tmp_path / "file").write_text("")
    (finding,) = of("storage", tmp_path / "file" / "runs")
    assert (finding.verdict, finding.what) == (
        "missing",
        f"{tmp_path / 'file' / 'runs'} (to be made in {tmp_path / 'file'}) cannot be written",
    )
    monkeypatch.setattr(doctor, "LEAST_FREE_GB", 1e9)
    (finding,) = of("storage", tmp_path)
    assert finding.verdict == "note"
    assert "search.keep_weights: front" in finding.mend
