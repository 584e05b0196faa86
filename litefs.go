package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// SQLite file format constants.
// https://www.sqlite.org/fileformat.html
const (
	// SQLITE_JOURNAL_HEADER_STRING is the magic at the start of a rollback journal's header.
	SQLITE_JOURNAL_HEADER_STRING = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"

	// SQLITE_DATABASE_SIZE_OFFSET is the offset, in the database file, of its size in pages.
	SQLITE_DATABASE_SIZE_OFFSET = 28
)

// Sizes of the headers of SQLite's WAL and wal-index, in bytes.
// https://www.sqlite.org/walformat.html
const (
	WALHeaderSize      = 32
	WALFrameHeaderSize = 24
	WALIndexHeaderSize = 136
)

// Commands of fcntl(2) for open file description locks.
const (
	F_OFD_GETLK  = 36
	F_OFD_SETLK  = 37
	F_OFD_SETLKW = 38
)

// PageSize is SQLite's default page size, in bytes. A database may have any other that SQLite
// allows: its own is in its header.
const PageSize = 4096

// Errors of the store, the databases and the leases.
var (
	ErrDatabaseNotFound = fmt.Errorf("database not found")
	ErrDatabaseExists   = fmt.Errorf("database already exists")

	ErrNoPrimary     = errors.New("no primary")
	ErrNoRecord      = errors.New("no primary has left a record")
	ErrPrimaryExists = errors.New("primary exists")
	ErrLeaseExpired  = errors.New("lease expired")

	ErrReadOnlyReplica = fmt.Errorf("read only replica")

	// ErrSnapshotNeeded reports a position that the log cannot be joined to: it is older than the
	// log's first entry, or it lies on another history. Only a whole copy moves such a node on.
	ErrSnapshotNeeded = errors.New("the log does not reach back to this position: snapshot needed")
)

// JournalMode represents a SQLite journal mode.
type JournalMode string

// Journal modes, as "PRAGMA journal_mode" spells them in upper case.
const (
	JournalModeDelete   = "DELETE"
	JournalModeTruncate = "TRUNCATE"
	JournalModePersist  = "PERSIST"
	JournalModeWAL      = "WAL"
)

// FileType represents a type of SQLite file.
type FileType int

// SQLite file types.
const (
	FileTypeNone = FileType(iota)
	FileTypeDatabase
	FileTypeJournal
	FileTypeWAL
	FileTypeSHM
)

// IsValid returns true if t is a valid file type. FileTypeNone names no file and is not valid.
func (t FileType) IsValid() bool {
	return t >= FileTypeDatabase && t <= FileTypeSHM
}

// Invalidator is a callback for the store to use to invalidate the kernel page cache.
type Invalidator interface {
	// InvalidateDB drops what the kernel caches of size bytes of the database file from offset on.
	InvalidateDB(db *DB, offset, size int64) error
}

// Client represents a client for connecting to other LiteFS nodes.
type Client interface {
	// Stream starts a long-running connection to stream changes from another node. rawurl is the
	// other node's base URL, posMap the position this node has of each database, by id. The stream
	// lives until ctx ends or it is closed.
	Stream(ctx context.Context, rawurl string, posMap map[uint32]Pos) (StreamReader, error)
}

// StreamReader represents a stream of changes from a primary server.
type StreamReader interface {
	io.ReadCloser

	// NextFrame reads the next frame from the stream. After a frame is read,
	// it may have a payload that can be read via Read() until io.EOF.
	// What is left unread of a payload is skipped by the next call.
	// Returns io.EOF when the other side ended the stream between two frames.
	NextFrame() (StreamFrame, error)
}

// StreamPeer is what a StreamReader may know beyond the frames: who is at the other end. It is an
// interface of its own, so that a StreamReader without it still is one.
type StreamPeer interface {
	ClusterID() string // the cluster that the other node belongs to
	NodeID() string
	Epoch() uint64 // the other node's epoch when the stream began
}

// StreamPromises is what a StreamReader may know beyond the frames: whether the other end tells what is decided
// (DecidedStreamFrame).
type StreamPromises interface {
	Promises() bool
}

// LTXReader is one LTX file about to be read: Size bytes that move a database to the position
// {MaxTXID, Post}. The receiver of an LTXReader closes it.
type LTXReader struct {
	io.ReadCloser

	Size             int64  // bytes of the whole file
	MinTXID, MaxTXID uint64 // first and last transaction in it
	Post             uint64 // the database's checksum after MaxTXID
}

// Pos returns the position of a database that has applied the file.
func (r *LTXReader) Pos() Pos { return Pos{TXID: r.MaxTXID, Chksum: r.Post} }

// FormatDBID formats id as a 16-character hex string.
func FormatDBID(id uint32) string {
	return fmt.Sprintf("%016x", id)
}

// ParseDBID parses a 16-character hex string into a database ID.
func ParseDBID(s string) (uint32, error) {
	v, err := parseHex16(s)
	if err != nil {
		return 0, fmt.Errorf("invalid database id: %w", err)
	}
	if v > 1<<32-1 {
		return 0, fmt.Errorf("invalid database id: %q does not fit in 32 bits", s)
	}
	return uint32(v), nil
}

// parseHex16 parses exactly 16 hexadecimal digits: strconv alone takes signs, underscores and any
// length, so that one number would have many spellings.
func parseHex16(s string) (uint64, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("%q: want 16 hexadecimal digits, got %d bytes", s, len(s))
	}
	for i := range len(s) {
		c := s[i]
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
			return 0, fmt.Errorf("%q: %q is no hexadecimal digit", s, c)
		}
	}
	return strconv.ParseUint(s, 16, 64)
}

// TrimName removes "-journal", "-shm" or "-wal" from the given name.
func TrimName(name string) string {
	for _, suffix := range []string{"-journal", "-shm", "-wal"} {
		if s, ok := strings.CutSuffix(name, suffix); ok {
			return s
		}
	}
	return name
}

// Pos represents the transactional position of a database.
type Pos struct {
	TXID   uint64 // the last transaction; 0 before the first
	Chksum uint64 // rolling checksum of the pages after it
}

// IsZero returns true if the position is empty.
func (p Pos) IsZero() bool { return p == Pos{} }

// String returns the position as "TXID/checksum", each as 16 hexadecimal digits.
func (p Pos) String() string {
	return fmt.Sprintf("%016x/%016x", p.TXID, p.Chksum)
}

// ParsePos parses what Pos.String returns.
func ParsePos(s string) (Pos, error) {
	txid, chksum, ok := strings.Cut(s, "/")
	if !ok {
		return Pos{}, fmt.Errorf("invalid position %q: want TXID/checksum", s)
	}
	var p Pos
	var err error
	if p.TXID, err = parseHex16(txid); err != nil {
		return Pos{}, fmt.Errorf("invalid position: TXID %w", err)
	}
	if p.Chksum, err = parseHex16(chksum); err != nil {
		return Pos{}, fmt.Errorf("invalid position: checksum %w", err)
	}
	return p, nil
}

// MaxNameLen is the longest name of a database, in bytes.
const MaxNameLen = 1024

// ValidateName returns an error unless name can be a database's name: its path relative to the
// mounted directory, in the one spelling that path.Clean gives. Names come from users and from the
// network and become paths; this is the door they pass once.
func ValidateName(name string) error {
	refuse := func(why string) error {
		return fmt.Errorf("invalid database name %q: %s", name, why)
	}
	switch {
	case name == "":
		return refuse("it is empty")
	case len(name) > MaxNameLen:
		return fmt.Errorf("invalid database name %.64q...: longer than %d bytes", name, MaxNameLen)
	case strings.IndexByte(name, 0) >= 0:
		return refuse("it contains a NUL byte")
	case name[0] == '/':
		return refuse("it must be relative to the mounted directory")
	}
	for component := range strings.SplitSeq(name, "/") {
		switch component {
		case "":
			return refuse("it has an empty path component")
		case ".", "..":
			return refuse("it has a path component " + strconv.Quote(component))
		}
	}
	// SQLite's and our own files beside a database are no databases; ".litefs..." at the top is ours.
	for _, suffix := range []string{"-wal", "-shm", "-journal", "-pos", "-lock"} {
		if strings.HasSuffix(name, suffix) {
			return refuse("the ending " + suffix + " is reserved")
		}
	}
	if strings.HasPrefix(name, ".litefs") {
		return refuse("names that start with .litefs are reserved")
	}
	return nil
}
