"""Increments a counter: counter.py DATABASE NAME TIMES. Prints "ok ID" for each COMMIT that returned."""
import sqlite3
import sys

path, name, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
c = sqlite3.connect(path, timeout=30, isolation_level=None)
for i in range(times):
    key = "%s.%d" % (name, i)
    try:
        c.execute("BEGIN IMMEDIATE")
        v = c.execute("SELECT v FROM counter").fetchone()[0]
        c.execute("UPDATE counter SET v = ?", (v + 1,))
        c.execute("INSERT INTO ledger VALUES (?, randomblob(200))", (key,))
        c.execute("COMMIT")
        print("ok", key, flush=True)
    except sqlite3.Error as e:
        print("error", key, e, flush=True)
        sys.exit(3)
