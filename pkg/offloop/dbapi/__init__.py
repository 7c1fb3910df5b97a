"""Any PEP 249 database module from asyncio, on a native pool of threads.

import offloop.dbapi

async with offloop.dbapi.connect("sqlite3", "app.db") as db:
    async with db.transaction():
        await db.execute("insert into t values (?, ?)", (1, "a"))
    rows = await db.fetch("select * from t")
"""

from offloop.dbapi.connection import Connection, connect
from offloop.dbapi.cursor import Cursor
from offloop.dbapi.drivers import Offload
from offloop.dbapi.pool import ConnectionPool, create_pool
from offloop.dbapi.transaction import Transaction

__all__ = [
    "Connection",
    "ConnectionPool",
    "Cursor",
    "Offload",
    "Transaction",
    "connect",
    "create_pool",
]
