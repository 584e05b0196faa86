// Package sqlitefile knows SQLite's files as bytes: the database header, the
// rollback journal, the write-ahead log, the wal-index and the lock bytes.
//
// It is pure: bytes in, values out. The only input that is not a slice is an
// io.ReaderAt. No other package knows a byte offset of one of these files.
//
// The formats are described in SQLite's fileformat2.html ("Database File
// Format") and walformat.html ("WAL-mode File Format"); what those leave out is
// in the comments of wal.c and pager.c.
package sqlitefile

// Bounds of a page size in bytes. A page size is a power of two.
const (
	MinPageSize = 512
	MaxPageSize = 65536
)

// Lock bytes of the database file (os.h). They lie in one page that holds no
// content; see LockPgno.
const (
	PendingByte  = 0x40000000
	ReservedByte = PendingByte + 1
	SharedFirst  = PendingByte + 2
	SharedSize   = 510
)

// Lock bytes of the -shm file (walformat.html 2.3). WALDMSLock, the "dead man
// switch", is held shared by every process that has the file open; whoever can
// take it exclusively is alone and truncates the file (os_unix.c).
const (
	WALWriteLock   = 120
	WALCkptLock    = 121
	WALRecoverLock = 122
	WALReadLock0   = 123
	WALReadLock1   = 124
	WALReadLock2   = 125
	WALReadLock3   = 126
	WALReadLock4   = 127
	WALDMSLock     = 128
)

// ReadMarks is the number of read marks in the wal-index, one for each of
// WALReadLock0 to WALReadLock4.
const ReadMarks = 5

// ValidPageSize reports whether n is a page size in bytes that SQLite accepts.
func ValidPageSize(n uint32) bool {
	return n >= MinPageSize && n <= MaxPageSize && n&(n-1) == 0
}

// LockPgno returns the number of the page that holds the lock bytes. SQLite
// never reads or writes it, so it is in no WAL and in no page checksum.
// pageSize must be valid.
func LockPgno(pageSize uint32) uint32 {
	return PendingByte/pageSize + 1
}
