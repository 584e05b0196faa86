import sqlite3
import sys
import time

command, path = sys.argv[1], sys.argv[2]
db = sqlite3.connect(path, timeout=5)
if command == "migrate":
    db.execute("PRAGMA journal_mode=wal")
    with db:
        db.execute("CREATE TABLE items(id INTEGER PRIMARY KEY, who TEXT NOT NULL, n INTEGER NOT NULL)")
        db.execute("CREATE INDEX items_who ON items(who)")
elif command == "migrate2":
    with db:
        db.execute("ALTER TABLE items ADD COLUMN note TEXT NOT NULL DEFAULT ''")
elif command == "work":
    who = sys.argv[3]
    try:
        for n in range(1, int(sys.argv[4]) + 1):
            with db:
                db.execute("INSERT INTO items(who, n) VALUES (?, ?)", (who, n))
                count, = db.execute("SELECT count(*) FROM items WHERE who = ?", (who,)).fetchone()
            assert count == n, (count, n)
            print(n, flush=True)
            time.sleep(0.005)  # two that never pause starve each other, on any disk
    except sqlite3.Error as e:
        print("error:", e, flush=True)
elif command == "check":
    for who, n in db.execute("SELECT who, count(*) FROM items GROUP BY who ORDER BY who"):
        print(who, n)
