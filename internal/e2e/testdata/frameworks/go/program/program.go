// Package program is the program of this directory for database/sql; the commands beside it name a driver.
package program

import (
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// pause is how long a writer leaves the others in: two that never pause starve each other, on any disk.
const pause = 5 * time.Millisecond

// Run runs a command line. dsn has %s for the path, a busy time-out of 3 s, and transactions that begin as writers.
func Run(driver, dsn string, args []string) error {
	db, err := sql.Open(driver, fmt.Sprintf(dsn, args[1]))
	if err != nil {
		return err
	}
	defer db.Close()
	switch args[0] {
	case "migrate":
		if _, err := db.Exec("PRAGMA journal_mode = wal"); err != nil {
			return err
		}
		_, err = db.Exec("CREATE TABLE items(id INTEGER PRIMARY KEY, who TEXT NOT NULL, n INTEGER NOT NULL)")
		return err
	case "migrate2":
		_, err = db.Exec("ALTER TABLE items ADD COLUMN note TEXT NOT NULL DEFAULT ''")
		return err
	case "work":
		limit, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		pauses := time.NewTicker(pause)
		defer pauses.Stop()
		for n := 1; n <= limit; n++ {
			got, err := add(db, args[2], n)
			if err != nil {
				fmt.Println("error:", err)
				return nil
			}
			if got != n {
				return fmt.Errorf("%d rows, want %d", got, n)
			}
			fmt.Println(n)
			<-pauses.C
		}
	case "check":
		rows, err := db.Query("SELECT who, count(*) FROM items GROUP BY who ORDER BY who")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var who string
			var n int
			if err := rows.Scan(&who, &n); err != nil {
				return err
			}
			fmt.Println(who, n)
		}
		return rows.Err()
	}
	return nil
}

func add(db *sql.DB, who string, n int) (count int, err error) {
	tx, err := db.Begin()
	if err != nil {
		return 0, err
	}
	if _, err = tx.Exec("INSERT INTO items(who, n) VALUES (?, ?)", who, n); err == nil {
		err = tx.QueryRow("SELECT count(*) FROM items WHERE who = ?", who).Scan(&count)
	}
	if err != nil {
		return 0, errors.Join(err, tx.Rollback())
	}
	return count, tx.Commit()
}
