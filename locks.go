package litefs

// LockType represents a SQLite lock type.
type LockType int

// Locks on a database file in the rollback journal modes, by the offset of their first byte.
// https://www.sqlite.org/lockingv3.html
const (
	LockTypePending  = 0x40000000
	LockTypeReserved = 0x40000001
	LockTypeShared   = 0x40000002
)

// SQLite rollback journal lock constants: offsets in the database file, and the number of bytes that
// the shared lock covers.
const (
	PENDING_BYTE  = 0x40000000
	RESERVED_BYTE = (PENDING_BYTE + 1)
	SHARED_FIRST  = (PENDING_BYTE + 2)
	SHARED_SIZE   = 510
)

// SQLite WAL lock constants: offsets in the wal-index file.
const (
	WAL_WRITE_LOCK   = 120
	WAL_CKPT_LOCK    = 121
	WAL_RECOVER_LOCK = 122
	WAL_READ_LOCK0   = 123
	WAL_READ_LOCK1   = 124
	WAL_READ_LOCK2   = 125
	WAL_READ_LOCK3   = 126
	WAL_READ_LOCK4   = 127
)

// ParseLockRange returns a list of SQLite locks that are within a range: those that have a byte in
// [start, end] of the database file, both ends included, in the order of their offsets. An end of
// math.MaxUint64 is the end of the file, however large. The list is empty for a range that is empty
// or touches no lock.
func ParseLockRange(start, end uint64) []LockType {
	locks := make([]LockType, 0, 3)
	for _, lock := range [...]struct {
		typ         LockType
		first, last uint64
	}{
		{LockTypePending, PENDING_BYTE, PENDING_BYTE},
		{LockTypeReserved, RESERVED_BYTE, RESERVED_BYTE},
		{LockTypeShared, SHARED_FIRST, SHARED_FIRST + SHARED_SIZE - 1},
	} {
		if start <= lock.last && lock.first <= end && start <= end {
			locks = append(locks, lock.typ)
		}
	}
	return locks
}
