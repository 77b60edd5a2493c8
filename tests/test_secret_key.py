"""The demo's secret key."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demows_project.secret_key import secret_key


def test_key_is_long_enough_for_django(tmp_path: Path) -> None:
    key = secret_key(tmp_path / "key")
    assert len(key) >= 50
    assert len(set(key)) >= 5


def test_key_is_read_by_its_owner_alone(tmp_path: Path) -> None:
    secret_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_key_stays_the_same(tmp_path: Path) -> None:
    assert secret_key(tmp_path / "key") == secret_key(tmp_path / "key")


def test_key_differs_from_place_to_place(tmp_path: Path) -> None:
    assert secret_key(tmp_path / "one") != secret_key(tmp_path / "other")


def test_key_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("mine")
    assert secret_key(tmp_path / "key") == "mine"


def test_key_leaves_no_other_file(tmp_path: Path) -> None:
    secret_key(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_key_is_the_same_for_workers_that_start_together(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def start(_: int) -> str:
        barrier.wait(10)
        return secret_key(tmp_path / "key")

    with ThreadPoolExecutor(8) as workers:
        assert len(set(workers.map(start, range(8)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_key_in_a_place_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        secret_key(tmp_path / "nowhere" / "key")
