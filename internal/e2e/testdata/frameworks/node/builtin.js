const { DatabaseSync } = require("node:sqlite");
const { writeSync } = require("fs");
const [, , command, path, who, limit] = process.argv;
const db = new DatabaseSync(path);
db.exec("PRAGMA busy_timeout = 3000");
switch (command) {
  case "migrate":
    db.exec("PRAGMA journal_mode = wal");
    db.exec("CREATE TABLE items(id INTEGER PRIMARY KEY, who TEXT NOT NULL, n INTEGER NOT NULL)");
    break;
  case "migrate2":
    db.exec("ALTER TABLE items ADD COLUMN note TEXT NOT NULL DEFAULT ''");
    break;
  case "work": {
    const insert = db.prepare("INSERT INTO items(who, n) VALUES (?, ?)");
    const count = db.prepare("SELECT count(*) AS c FROM items WHERE who = ?");
    try {
      for (let n = 1; n <= Number(limit); n++) {
        db.exec("BEGIN IMMEDIATE");
        insert.run(who, n);
        const got = count.get(who).c;
        db.exec("COMMIT");
        if (got !== n) throw new RangeError(`${got} rows, want ${n}`);
        writeSync(1, `${n}\n`);
      }
    } catch (e) {
      if (e.code !== "ERR_SQLITE_ERROR") throw e;
      writeSync(1, `error: ${e.message}\n`);
    }
    break;
  }
  case "check":
    for (const row of db.prepare("SELECT who, count(*) AS c FROM items GROUP BY who ORDER BY who").all())
      writeSync(1, `${row.who} ${row.c}\n`);
}
