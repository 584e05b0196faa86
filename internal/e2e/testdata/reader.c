/* Reads the database named by its argument until its standard input ends, as an application in C does.
 * Every read must see a whole transaction: nine rows, all of the version that the table total tells. Two
 * reads in one transaction must be the same, and no version may be older than one seen before.
 *
 * Prints "reads N version V" and ends with 0; ends with 3 and a line when it saw anything else, with 4
 * and a line after an error of SQLite.
 *
 * The few declarations below are those of sqlite3.h: the library alone is enough to build this. */
#include <poll.h>
#include <stdio.h>
#include <string.h>

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;
int sqlite3_open_v2(const char *, sqlite3 **, int, const char *);
int sqlite3_busy_timeout(sqlite3 *, int);
int sqlite3_exec(sqlite3 *, const char *, void *, void *, void *);
int sqlite3_prepare_v2(sqlite3 *, const char *, int, sqlite3_stmt **, void *);
int sqlite3_step(sqlite3_stmt *);
int sqlite3_reset(sqlite3_stmt *);
int sqlite3_finalize(sqlite3_stmt *);
int sqlite3_close(sqlite3 *);
long long sqlite3_column_int64(sqlite3_stmt *, int);
const char *sqlite3_errmsg(sqlite3 *);
int sqlite3_extended_errcode(sqlite3 *);
enum { SQLITE_OPEN_READWRITE = 2, SQLITE_ROW = 100 };

static sqlite3 *db;

static int failed(const char *what) {
  printf("%s: %s (%d)\n", what, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
  return 4;
}

/* ended also gives way for a moment: readers without a pause would leave a writer no time. */
static int ended(void) {
  struct pollfd in = {0, POLLIN, 0};
  return poll(&in, 1, 1) != 0;
}

int main(int argc, char **argv) {
  const char *sql = "SELECT count(*), min(ver), max(ver), (SELECT n FROM total) FROM t WHERE length(pad) = 1200";
  sqlite3_stmt *read = 0;
  long long reads = 0, last = 0;
  if (argc != 2) return 2;
  if (sqlite3_open_v2(argv[1], &db, SQLITE_OPEN_READWRITE, 0)) return failed("open");
  sqlite3_busy_timeout(db, 60000);
  if (sqlite3_prepare_v2(db, sql, -1, &read, 0)) return failed("prepare");
  while (!ended()) {
    long long row[2][4];
    if (sqlite3_exec(db, "BEGIN", 0, 0, 0)) return failed("begin");
    for (int i = 0; i < 2; i++) {
      if (sqlite3_step(read) != SQLITE_ROW) return failed("read");
      for (int k = 0; k < 4; k++) row[i][k] = sqlite3_column_int64(read, k);
      sqlite3_reset(read);
    }
    if (sqlite3_exec(db, "COMMIT", 0, 0, 0)) return failed("commit");
    if (row[0][0] != 9 || row[0][1] != row[0][2] || row[0][2] != row[0][3] || row[0][3] < last ||
        memcmp(row[0], row[1], sizeof row[0])) {
      printf("after version %lld: %lld rows, %lld to %lld, total %lld; then %lld rows, %lld to %lld, total %lld\n", last,
             row[0][0], row[0][1], row[0][2], row[0][3], row[1][0], row[1][1], row[1][2], row[1][3]);
      return 3;
    }
    last = row[0][3];
    reads += 2;
  }
  sqlite3_finalize(read);
  if (sqlite3_close(db)) return failed("close");
  printf("reads %lld version %lld\n", reads, last);
  return 0;
}
