// Package archive is the format of litefs's archive: the objects, what they are called, and which of
// them make a database as it was at some moment. It decides from its arguments alone; who keeps the
// objects, and who writes them, is decided elsewhere. docs/archive.md has the whole picture.
//
// An archive of a database is a chain of moments, numbered 1, 2, 3, ... A moment is the state that the
// database had when one or more transactions had ended. An object holds the pages that changed over a
// run of moments, Min to Max; one that begins with moment 1 holds every page. Objects are of levels:
//
//	0      one moment each; the writer of moment n is whoever puts the object n-n first
//	1..3   runs of the level below, put together
//	9      all of the database: 1 to n
//
// An object is an LTX file (format 3) without database checksums, as Litestream 0.5 writes and reads
// it. Litestream numbers its syncs where we number moments. What only litefs knows stands in header
// fields that Litestream leaves to the writer of a file:
//
//	WAL offset    TXID of the cluster after the object
//	WAL size      id of the database << 31 | number of transactions in the object
//	WAL salts     rolling checksum of the database after it, upper and lower half
//	node ID       epoch: the fencing token of the primary that wrote the last transaction
//
// Pages are LZ4 frames without a flag, which every Litestream 0.5 reads; reading takes both forms.
package archive

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/superfly/ltx"
)

var (
	// ErrCorrupt: the bytes are not an object, or not the one that was asked for.
	ErrCorrupt = errors.New("damaged object of an archive")
	// ErrNoPlan: no chain of objects leads to the moment.
	ErrNoPlan = errors.New("the archive cannot give this moment")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, args...))
}

// Levels.
const (
	LevelRaw      = 0
	LevelTop      = 3 // the highest that is put together from the one below
	LevelSnapshot = 9
)

// Object is what a listing tells of an object. 1 <= Min <= Max.
type Object struct {
	Level    int
	Min, Max uint64 // first and last moment
	Size     int64  // bytes
	Modified time.Time
}

// Name is the object's name in the folder of its level.
func (o Object) Name() string { return ltx.FormatFilename(ltx.TXID(o.Min), ltx.TXID(o.Max)) }

func (o Object) String() string { return fmt.Sprintf("%d/%s", o.Level, o.Name()) }

// Layout is where objects are, below the folder of a history. Litestream has two.
type Layout int

// Layouts.
const (
	LayoutDir    Layout = iota // ltx/0/..., of directories
	LayoutBucket               // 0000/..., of S3
)

// Prefix is the folder of a level, with a slash at its end.
func (l Layout) Prefix(level int) string {
	if l == LayoutBucket {
		return fmt.Sprintf("%04x/", level)
	}
	return fmt.Sprintf("ltx/%d/", level)
}

// Key is the key of an object, below the folder of its history.
func (l Layout) Key(o Object) string { return l.Prefix(o.Level) + o.Name() }

var (
	dirKey    = regexp.MustCompile(`^ltx/([0-9])/([0-9a-f]{16})-([0-9a-f]{16})\.ltx$`)
	bucketKey = regexp.MustCompile(`^(000[0-9])/([0-9a-f]{16})-([0-9a-f]{16})\.ltx$`)
)

// Parse takes a key, below the folder of its history, apart; false for what is no object.
func (l Layout) Parse(key string) (Object, bool) {
	re := dirKey
	if l == LayoutBucket {
		re = bucketKey
	}
	m := re.FindStringSubmatch(key)
	if m == nil {
		return Object{}, false
	}
	level, err1 := strconv.Atoi(m[1])
	first, err2 := strconv.ParseUint(m[2], 16, 64)
	last, err3 := strconv.ParseUint(m[3], 16, 64)
	if errors.Join(err1, err2, err3) != nil || first == 0 || first > last {
		return Object{}, false
	}
	return Object{Level: level, Min: first, Max: last}, true
}

// Header is what an object says of itself.
type Header struct {
	Min, Max         uint64 // moments
	PageSize, Commit uint32 // bytes; pages of the database after it, at least 1
	Time             time.Time
	State            State
}

// State is the cluster's position after an object; the zero value in objects of other writers.
type State struct {
	TXID  uint64 // of the last transaction
	Count uint32 // of transactions in the object, at most maxCount; 0: it takes the moment before it back
	DB    uint32 // id of the database: its incarnation
	Sum   uint64 // rolling checksum of the database, bit 63 set
	Epoch uint64
}

// Known says whether litefs wrote the object.
func (s State) Known() bool { return s.Sum&sumFlag != 0 && s.TXID > 0 }

// maxCount is what is written for all counts above it.
const maxCount = 1<<31 - 1

const sumFlag = uint64(ltx.ChecksumFlag)

func (h Header) ltx() ltx.Header {
	return ltx.Header{
		Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum,
		PageSize: h.PageSize, Commit: h.Commit, MinTXID: ltx.TXID(h.Min), MaxTXID: ltx.TXID(h.Max),
		Timestamp: h.Time.UnixMilli(),
		WALOffset: int64(h.State.TXID), WALSize: int64(h.State.DB)<<31 | int64(min(h.State.Count, maxCount)),
		WALSalt1: uint32(h.State.Sum >> 32), WALSalt2: uint32(h.State.Sum),
		NodeID: h.State.Epoch,
	}
}

// HeaderSize is how many bytes ParseHeader needs.
const HeaderSize = ltx.HeaderSize

// ParseHeader reads the first HeaderSize bytes of an object. ours: it is of an archive of litefs; in
// another's the fields of State mean something else.
func ParseHeader(b []byte, ours bool) (Header, error) {
	_, h, err := parseHeader(b, ours)
	return h, err
}

func parseHeader(b []byte, ours bool) (ltx.Header, Header, error) {
	var h ltx.Header
	if len(b) < HeaderSize {
		return h, Header{}, corrupt("%d bytes, the header has %d", len(b), HeaderSize)
	}
	if err := h.UnmarshalBinary(b); err != nil {
		return h, Header{}, corrupt("header: %w", err)
	}
	if err := h.Validate(); err != nil {
		return h, Header{}, corrupt("header: %w", err)
	}
	if h.Commit == 0 {
		return h, Header{}, corrupt("header: a database of no pages")
	}
	out := Header{
		Min: uint64(h.MinTXID), Max: uint64(h.MaxTXID), PageSize: h.PageSize, Commit: h.Commit,
		Time: time.UnixMilli(h.Timestamp).UTC(),
	}
	if ours {
		out.State = State{
			TXID: uint64(h.WALOffset), DB: uint32(h.WALSize >> 31), Count: uint32(h.WALSize & maxCount),
			Sum: uint64(h.WALSalt1)<<32 | uint64(h.WALSalt2), Epoch: h.NodeID,
		}
		if !out.State.Known() {
			return h, Header{}, corrupt("header: no position of a cluster")
		}
	}
	return h, out, nil
}
