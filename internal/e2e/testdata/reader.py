"""Reads the database named by its argument until its standard input ends; see reader.c."""

import select
import sqlite3
import sys

READ = "SELECT count(*), min(ver), max(ver), (SELECT n FROM total) FROM t WHERE length(pad) = 1200"


def main(path):
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    reads, last = 0, 0
    while not select.select([0], [], [], 0.001)[0]:
        db.execute("BEGIN")
        first, second = db.execute(READ).fetchone(), db.execute(READ).fetchone()
        db.execute("COMMIT")
        rows, low, high, total = first
        if rows != 9 or low != high or high != total or total < last or first != second:
            print(f"after version {last}: {first}, then {second}")
            return 3
        last = total
        reads += 2
    db.close()
    print(f"reads {reads} version {last}")
    return 0


try:
    sys.exit(main(sys.argv[1]))
except sqlite3.Error as e:
    print(f"{type(e).__name__}: {e}")
    sys.exit(4)
