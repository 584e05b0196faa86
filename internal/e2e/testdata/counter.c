/* Increments a counter: counter DATABASE NAME TIMES MILLISECONDS, the last being its busy time-out. Prints "ok ID" for
 * each COMMIT that returned; the connection stays open. Between two it waits PAUSE microseconds. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;
int sqlite3_open_v2(const char *, sqlite3 **, int, const char *);
int sqlite3_close(sqlite3 *);
int sqlite3_busy_timeout(sqlite3 *, int);
int sqlite3_exec(sqlite3 *, const char *, int (*)(void *, int, char **, char **), void *, char **);
int sqlite3_prepare_v2(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
int sqlite3_step(sqlite3_stmt *);
long long sqlite3_column_int64(sqlite3_stmt *, int);
int sqlite3_finalize(sqlite3_stmt *);
int sqlite3_extended_errcode(sqlite3 *);
const char *sqlite3_errmsg(sqlite3 *);

enum { SQLITE_OK = 0, SQLITE_ROW = 100, SQLITE_OPEN_READWRITE = 2 };

static sqlite3 *db;

static int run(const char *sql) {
	int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
	if (rc != SQLITE_OK)
		printf("error %s: %d %s\n", sql, sqlite3_extended_errcode(db), sqlite3_errmsg(db));
	return rc;
}

int main(int argc, char **argv) {
	if (argc != 5 || sqlite3_open_v2(argv[1], &db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK)
		return 2;
	sqlite3_busy_timeout(db, atoi(argv[4]));
	for (int i = 0, times = atoi(argv[3]); i < times; i++) {
		sqlite3_stmt *s;
		char sql[400];
#ifdef PAUSE
		usleep(PAUSE);
#endif
		if (run("BEGIN IMMEDIATE") != SQLITE_OK)
			return 3;
		if (sqlite3_prepare_v2(db, "SELECT v FROM counter", -1, &s, NULL) != SQLITE_OK || sqlite3_step(s) != SQLITE_ROW)
			return 3;
		long long v = sqlite3_column_int64(s, 0);
		sqlite3_finalize(s);
		snprintf(sql, sizeof sql, "UPDATE counter SET v = %lld; INSERT INTO ledger VALUES ('%s.%d', randomblob(200)); COMMIT", v + 1, argv[2], i);
		if (run(sql) != SQLITE_OK)
			return 3;
		printf("ok %s.%d\n", argv[2], i);
		fflush(stdout);
	}
	return sqlite3_close(db) != SQLITE_OK;
}
