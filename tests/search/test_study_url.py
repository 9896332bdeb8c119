"""A study at a server: what is wrong with its URL is one line, and no password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.atomic import StoreError
from search.sampler import StudySampler
from search.study import require_study, study_place
from tests.search.fabricated import SPACE


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "postgresql+nodriver://me:secret@host/db",
            r"postgresql\+nodriver://me:\*\*\*@host/db cannot be opened .*check the URL",
        ),
        ("mysql://me:secret@host/db", r"mysql://me:\*\*\*@host/db needs the Python package 'MySQLdb': install it"),
        ("nonsense", "the study nonsense cannot be opened .*check the URL and its server"),
    ],
)
def test_a_url_that_cannot_be_opened_is_one_line_with_its_mend(url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as refused:
        StudySampler(url, SPACE)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_study_is_asked_after_before_anything_is_trained(tmp_path: Path) -> None:
    require_study("sqlite")
    require_study(f"sqlite:///{tmp_path}/new.db")
    require_study(f"journal:{tmp_path}/new.log")
    assert list(tmp_path.iterdir()) == [], "asking writes nothing"
    with pytest.raises(StoreError, match=f"search.study: {tmp_path} is a folder: name a file in it"):
        require_study(f"journal:{tmp_path}")
    with pytest.raises(StoreError, match=r"postgresql\+nodriver://me:\*\*\*@host/db cannot be opened .*check the URL"):
        require_study("postgresql+nodriver://me:secret@host/db")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("sqlite:////disk/run/study.db", "/disk/run/study.db"),
        ("journal:/disk/study.log", "/disk/study.log"),
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
    ],
)
def test_the_place_of_a_study_as_it_is_told(url: str, place: str) -> None:
    assert study_place(url) == place
