"""Digests of files: what they hold counts, and a file that is unchanged is not read again."""

from __future__ import annotations

import builtins
import os
import time

import pytest

from carblib.base import contents as module
from carblib.base.contents import Contents
from carblib.base.errors import CarbError


@pytest.fixture
def no_file_is_young(monkeypatch) -> None:
    monkeypatch.setattr(module, "_RACY", 0)


def write_old(path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, (time.time() - 60,) * 2)


def test_content_counts_and_not_the_place(tmp_path) -> None:
    write_old(tmp_path / "a", b"1")
    write_old(tmp_path / "b", b"1")
    write_old(tmp_path / "c", b"2")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    contents = Contents(tmp_path / "table.json")
    a, b, c, link = contents.digests(tmp_path / name for name in ("a", "b", "c", "link"))
    assert a == b == link != c
    with pytest.raises(CarbError, match=r"nothere: no such file; check the path$"):
        contents.digest(tmp_path / "nothere")


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch, no_file_is_young) -> None:
    paths = [tmp_path / f"{i}" for i in range(5)]
    for path in paths:
        write_old(path, path.name.encode())
    before = Contents(tmp_path / "table.json").digests(paths)
    opened, plain = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, *rest, **more: opened.append(str(path)) or plain(path, *rest, **more)
    )
    again = Contents(tmp_path / "table.json")
    assert again.digests(paths) == before and not [path for path in opened if path in map(str, paths)]
    alone = tmp_path / "weights"
    write_old(alone, b"large")
    Contents(tmp_path / "table.json").digest(alone)
    opened.clear()
    assert Contents(tmp_path / "table.json").digest(alone) and str(alone) not in opened, "one is remembered as many are"
    write_old(paths[2], b"x")  # another content of the same size; only its time tells
    os.utime(paths[2], (time.time() - 30,) * 2)
    now = again.digests(paths)
    assert [a != b for a, b in zip(before, now, strict=True)] == [False, False, True, False, False]


@pytest.mark.parametrize("way", ["in place", "by another file"])
def test_a_file_changed_at_the_same_size_and_time_is_seen(tmp_path, no_file_is_young, way: str) -> None:
    path, table = tmp_path / "a", tmp_path / "table.json"
    write_old(path, b"1")
    first, stat = Contents(table).digest(path), path.stat()
    other = path if way == "in place" else tmp_path / "b"
    time.sleep(0.05)  # a tick of the kernel's clock, by which times of change differ
    other.write_bytes(b"2")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert Contents(table).digest(path) != first


def test_a_young_file_is_not_trusted_and_a_damaged_table_is_made_again(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    contents = Contents(tmp_path / "table.json")
    first, stat = contents.digests([tmp_path / "a"])[0], (tmp_path / "a").stat()
    (tmp_path / "a").write_bytes(b"2")
    os.utime(tmp_path / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    assert contents.digest(tmp_path / "a") != first
    for damage in ("", "{", "[1]", '{"a": [1]}', '{"a": "b"}'):
        (tmp_path / "table.json").write_text(damage)
        assert Contents(tmp_path / "table.json").digest(tmp_path / "a")


def test_three_thousand_files_are_checked_in_a_moment(tmp_path, no_file_is_young) -> None:
    paths = [tmp_path / f"{i:04d}.png" for i in range(3000)]
    for path in paths:
        write_old(path, path.name.encode())
    Contents(tmp_path / "table.json").digests(paths)
    started = time.process_time()
    Contents(tmp_path / "table.json").digests(paths)
    assert time.process_time() - started < 2
