package bench

import (
	"cmp"
	"fmt"

	"github.com/litefs/litefs/internal/sqlapp"
)

// Workload is something an application does over and over.
type Workload struct {
	Name    string
	What    string   // for people
	Journal string   // journal mode; empty: WAL
	Unit    string   // what is counted
	Setup   []string // statements that make the database
	Pragmas []string // of the measured connection
	Steps   []sqlapp.Step
	Units   float64 // units for each repetition of the steps
	Rounds  int     // at most so many repetitions; 0: the duration alone bounds it
	Fresh   bool    // a new database for each round; else one for all
	Target  float64 // the least ratio of mount to native that is good; 0: it is only reported
}

// journal is the journal mode of the database.
func (w Workload) journal() string { return cmp.Or(w.Journal, "wal") }

// database is the file a round works on.
func (w Workload) database(round int) string {
	if w.Fresh {
		return fmt.Sprintf("%s-%d.db", w.Name, round)
	}
	return w.Name + ".db"
}

const (
	table     = "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)"
	insertRow = "INSERT INTO t(v) VALUES (randomblob(100))"
	readRows  = 10_000
	scanRows  = 100_000
	bulkRows  = 1000 // a transaction
	bulkTxs   = 1000 // at most: a million rows
)

// rows is a statement that fills the table.
func rows(n, size int) string {
	return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO t(v) SELECT randomblob(%d) FROM n", n, size)
}

// readRow reads one of readRows rows.
var readRow = fmt.Sprintf("SELECT v FROM t WHERE id = 1 + abs(random() %% %d)", readRows)

// rollback inserts rows with a rollback journal, whose mode is a setting of the connection, at SQLite's default of
// synchronous.
func rollback(mode string, target float64) Workload {
	return Workload{
		Name: mode, What: "insert one row a transaction, synchronous=FULL, journal_mode=" + mode, Unit: "transactions", Journal: mode,
		Setup: []string{table}, Pragmas: []string{"journal_mode=" + mode, "synchronous=full"},
		Steps: []sqlapp.Step{{SQL: insertRow}}, Units: 1, Fresh: true, Target: target,
	}
}

// Workloads returns all workloads.
func Workloads() []Workload {
	const checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)"
	return []Workload{
		{
			Name: "normal", What: "insert one row a transaction, synchronous=NORMAL", Unit: "transactions",
			Setup: []string{table}, Pragmas: []string{"synchronous=normal"},
			Steps: []sqlapp.Step{{SQL: insertRow}}, Units: 1, Fresh: true, Target: 0.75,
		},
		{
			Name: "full", What: "insert one row a transaction, synchronous=FULL", Unit: "transactions",
			Setup: []string{table}, Pragmas: []string{"synchronous=full"},
			Steps: []sqlapp.Step{{SQL: insertRow}}, Units: 1, Fresh: true, Target: 0.65,
		},
		{
			Name: "read", What: "read one row by its key", Unit: "reads",
			Setup: []string{table, rows(readRows, 100), checkpoint},
			Steps: []sqlapp.Step{{SQL: readRow}}, Units: 1, Target: 0.9,
		},
		{
			Name: "bulk", What: fmt.Sprintf("insert %d rows a transaction", bulkRows), Unit: "rows",
			Setup: []string{table}, Pragmas: []string{"synchronous=normal"},
			Steps: []sqlapp.Step{{SQL: "BEGIN"}, {SQL: insertRow, Times: bulkRows}, {SQL: "COMMIT"}},
			Units: bulkRows, Rounds: bulkTxs, Fresh: true, Target: 0.75,
		},
		{
			Name: "scan", What: "read the whole table", Unit: "rows",
			Setup: []string{table, rows(scanRows, 300), checkpoint},
			Steps: []sqlapp.Step{{SQL: "SELECT count(*), sum(length(v)) FROM t"}},
			Units: scanRows, Target: 0.85,
		},
		rollback("delete", 0.45),
		rollback("truncate", 0),
		rollback("persist", 0),
		{
			Name: "delete-read", What: "read one row by its key, journal_mode=delete", Unit: "reads", Journal: "delete",
			Setup: []string{table, rows(readRows, 100)},
			Steps: []sqlapp.Step{{SQL: readRow}}, Units: 1, Target: 0.7,
		},
	}
}
