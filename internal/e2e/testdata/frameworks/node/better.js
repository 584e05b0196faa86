const Database = require("better-sqlite3");
const { writeSync } = require("fs");
const [, , command, path, who, limit] = process.argv;
const db = new Database(path, { timeout: 3000 });
switch (command) {
  case "migrate":
    db.pragma("journal_mode = wal");
    db.exec("CREATE TABLE items(id INTEGER PRIMARY KEY, who TEXT NOT NULL, n INTEGER NOT NULL)");
    break;
  case "migrate2":
    db.exec("ALTER TABLE items ADD COLUMN note TEXT NOT NULL DEFAULT ''");
    break;
  case "work": {
    const insert = db.prepare("INSERT INTO items(who, n) VALUES (?, ?)");
    const count = db.prepare("SELECT count(*) FROM items WHERE who = ?").pluck();
    const add = db.transaction((n) => {
      insert.run(who, n);
      return count.get(who);
    });
    try {
      for (let n = 1; n <= Number(limit); n++) {
        const got = add(n);
        if (got !== n) throw new RangeError(`${got} rows, want ${n}`);
        writeSync(1, `${n}\n`);
      }
    } catch (e) {
      if (!(e instanceof Database.SqliteError)) throw e;
      writeSync(1, `error: ${e.message}\n`);
    }
    break;
  }
  case "check":
    for (const row of db.prepare("SELECT who, count(*) AS c FROM items GROUP BY who ORDER BY who").all())
      writeSync(1, `${row.who} ${row.c}\n`);
}
db.close();
