"""aioodbc's own tests on offloop.dbapi.aioodbc, with nothing but the import changed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path

import offloop
import pytest
from databases import odbc_driver, unpool_odbc
from driving import within
from upstreams import PACKAGES, UPSTREAM, distributions

pytestmark = [pytest.mark.drivers, pytest.mark.xdist_group("drivers")]

#: Tests that are left out by name, and why. None is there because it fails.
LEFT_OUT = {
    "test_pool_with_connection_recycling[uvloop]": "sleeps for 5 s; it runs on asyncio's loop",
}


@pytest.mark.limit(300)
def test_its_own_suite(tmp_path: Path) -> None:
    """On SQLite's ODBC driver, as they are; once on asyncio's loop and once on uvloop's."""
    distribution = distributions()
    tests = tmp_path / "suite"
    distribution.AIOODBC.unpack(tests, distribution.swapped("aioodbc", "offloop.dbapi.aioodbc"))
    (tmp_path / "odbcinst.ini").write_text(
        f"[SQLite3]\nDriver={odbc_driver('libsqlite3odbc.so')}\nThreading=2\n"
    )
    (tests / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "pytest_asyncio", "-p", "no:cacheprovider",
            "-p", "no:xdist", f"--junitxml={tmp_path / 'out.xml'}",
            *[f"--deselect=test_pool.py::{name}" for name in LEFT_OUT], ".",
        ],
        cwd=tests,
        env={
            **os.environ,
            "PYTHONPATH": f"{UPSTREAM}/stand_ins:{PACKAGES}",
            "ODBCSYSINI": str(tmp_path),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    outcomes: Counter[str] = Counter()
    for case in xml.parse(tmp_path / "out.xml").getroot().iter("testcase"):
        kind = next((child.tag for child in case if child.tag != "properties"), "passed")
        outcomes[kind] += 1
    assert set(outcomes) <= {"passed", "skipped"}, done.stdout[-6000:] + done.stderr[-2000:]
    assert outcomes["passed"] >= 120
    assert outcomes["skipped"] == 2, "the suite itself skips one, on each loop"
    assert done.returncode == 0


def dsn(folder: Path) -> str:
    unpool_odbc()
    return f"Driver={odbc_driver('libsqlite3odbc.so')};Database={folder}/db"


async def test_it_is_a_connection_of_ours_as_well(tmp_path: Path) -> None:
    from offloop.dbapi import aioodbc  # noqa: PLC0415  # not there where these tests do not run

    async with offloop.Pool(2) as threads:
        async with aioodbc.connect(dsn=dsn(tmp_path), pool=threads) as db:
            await db.execute("create table t (n integer primary key)")
            async with db.transaction():
                await db.execute("insert into t values (?)", 1)
            assert await db.fetchval("select n from t where n = ?", 1) == 1
            cursor = await db.execute("select n from t")
            assert await cursor.fetchval() == 1 and await cursor.fetchval() is None
            assert [row.n async for row in await db.execute("select n from t")] == [1]
            with pytest.raises(NotImplementedError):
                await cursor.callproc("p")
        async with aioodbc.connect(dsn=dsn(tmp_path), executor=threads) as db:
            assert db.pool is threads  # committed at the end, as with aioodbc
            assert await db.fetchval("select count(*) from t") == 1
        with pytest.warns(DeprecationWarning, match="loop"):
            assert isinstance(await aioodbc.dataSources(asyncio.get_running_loop(), threads), dict)


async def test_its_pool_lends_nothing_that_is_open(tmp_path: Path) -> None:
    from offloop.dbapi import aioodbc  # noqa: PLC0415

    async with aioodbc.create_pool(dsn(tmp_path), minsize=1, maxsize=1) as pool:
        async with pool.acquire() as db:
            await db.execute("create table t (n integer primary key)")
            await db.commit()
            await db.execute("insert into t values (1)")
        async with pool.acquire() as again:
            assert again is db
            assert await db.fetchval("select count(*) from t") == 0
        assert await within(pool.fetchval("select 7")) == 7
        assert pool._maker.pool.workers == 1
