"""Prints what a database holds for a document: one update per line in hex, the checkpoint first."""

import sqlite3
import sys

database = sqlite3.connect(sys.argv[1])
for query in (
    "SELECT checkpoint FROM ycheckpoints WHERE path = ?",
    "SELECT yupdate FROM yupdates WHERE path = ? ORDER BY timestamp, rowid",
):
    for (update,) in database.execute(query, (sys.argv[2],)):
        print(update.hex())
