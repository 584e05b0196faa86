package ltxlog

import (
	"errors"
	"io"

	"github.com/litefs/litefs/internal/seal"
)

// form is how the bytes of an entry lie on the disk. On this side of it everything is the entry itself, as peers get it:
// Entry.Size, what is verified, what is streamed. Nobody else knows that there may be a difference, but for those who
// take files as they are (copies of logs, a file whose sync failed).
type form interface {
	// store returns the whole entry in enc.buf as it is to lie on the disk; enc.sealed is room for that.
	store(enc *encoder) ([]byte, error)
	// storedSize is how many bytes store makes of so many.
	storedSize(entry int64) int64
	// writer stores in w an entry that comes in parts. It is complete when Close has returned.
	writer(w io.Writer) (io.WriteCloser, error)

	// headSize is how much of a file open wants to see.
	headSize() int
	// entrySize is the size of an entry that begins with head and is stored in so many bytes.
	entrySize(head []byte, stored int64) int64
	// open gives the content of a stored entry of size bytes whose last transaction is max. head is what was read
	// of it: headSize bytes or more, or all. nil: nothing was. Wrong content is ErrCorrupt, now or when it is read.
	open(stored io.ReaderAt, head []byte, size int64, max uint64) (io.ReaderAt, error)
}

// Sealing has the key of an encrypted log. docs/encryption.md has the whole picture.
type Sealing struct {
	Key seal.DataKey
	// PlainUpTo is the last transaction that may lie in the clear: what was there before there was a key. Later ones
	// that do are ErrCorrupt, for anybody can have written them.
	PlainUpTo uint64
	// Off: new entries are stored in the clear, and believed. What is sealed can be read.
	Off bool
}

func newForm(s *Sealing) form {
	if s == nil {
		return plainForm{}
	}
	return &sealedForm{*s}
}

// SealFromHere changes how entries are stored from now on. It comes right after Open, before anybody uses the log.
func (l *Log) SealFromHere(s Sealing) { l.form = newForm(&s) }

// ErrSealed: an entry is encrypted, and the log was opened without a key.
var ErrSealed = errors.New("transaction log is encrypted")

// plainForm is the entry itself.
type plainForm struct{}

func (plainForm) store(enc *encoder) ([]byte, error)         { return enc.buf, nil }
func (plainForm) storedSize(entry int64) int64               { return entry }
func (plainForm) writer(w io.Writer) (io.WriteCloser, error) { return nopCloser{w}, nil }
func (plainForm) headSize() int                              { return minEntrySize }
func (plainForm) entrySize(_ []byte, stored int64) int64     { return stored }

func (plainForm) open(stored io.ReaderAt, head []byte, _ int64, _ uint64) (io.ReaderAt, error) {
	if seal.Sealed(head) {
		return nil, ErrSealed
	}
	return ahead{stored, head}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// ahead is a file of which the first bytes have been read.
type ahead struct {
	io.ReaderAt
	head []byte
}

func (a ahead) ReadAt(p []byte, at int64) (int, error) {
	if at >= 0 && at+int64(len(p)) <= int64(len(a.head)) {
		return copy(p, a.head[at:]), nil
	}
	return a.ReaderAt.ReadAt(p, at)
}

// sealedForm is the entry encrypted with the log's key (package seal), under a key that is derived with a new salt each
// time: no nonce comes twice, whatever crashes and whichever file is used again. Which entry it is stands in it.
type sealedForm struct{ Sealing }

// sealedName is the name under which entries are sealed.
const sealedName = "log entry"

func (s *sealedForm) store(enc *encoder) (b []byte, err error) {
	if s.Off {
		return enc.buf, nil
	}
	enc.sealed, err = seal.Append(enc.sealed[:0], s.Key, sealedName, enc.buf)
	return enc.sealed, err
}

func (s *sealedForm) storedSize(entry int64) int64 {
	if s.Off {
		return entry
	}
	return seal.SealedSize(entry)
}

func (s *sealedForm) writer(w io.Writer) (io.WriteCloser, error) {
	if s.Off {
		return nopCloser{w}, nil
	}
	return seal.NewWriter(w, s.Key, sealedName)
}

func (*sealedForm) headSize() int { return seal.HeadSize }

func (*sealedForm) entrySize(head []byte, stored int64) int64 {
	if seal.Sealed(head) {
		return seal.PlainSize(stored)
	}
	return stored
}

// sealedAhead is how many bytes of a file are read at once when it is opened: a small entry needs no other reading.
const sealedAhead = 64 << 10

func (s *sealedForm) open(stored io.ReaderAt, head []byte, size int64, max uint64) (io.ReaderAt, error) {
	if head == nil {
		head = make([]byte, min(seal.SealedSize(size), sealedAhead))
		n, err := stored.ReadAt(head, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		head = head[:n]
	}
	if !seal.Sealed(head) {
		if !s.Off && max > s.PlainUpTo {
			return nil, corrupt("it is not encrypted, as everything after transaction %016x has to be", s.PlainUpTo)
		}
		return ahead{stored, head}, nil
	}
	r, err := seal.NewReaderAt(stored, head, size, sealedName, s.find)
	if err != nil {
		return nil, asCorrupt(err)
	}
	return sealedContent{r}, nil
}

// find takes no other key than the log's: a log has one.
func (s *sealedForm) find(id [16]byte) (seal.DataKey, error) {
	if id != s.Key.ID {
		return seal.DataKey{}, corrupt("it is encrypted with key %x, the log has %x", id, s.Key.ID)
	}
	return s.Key, nil
}

// sealedContent gives what is wrong with a sealed entry as it is given of others.
type sealedContent struct{ r *seal.ReaderAt }

func (c sealedContent) ReadAt(p []byte, at int64) (int, error) {
	n, err := c.r.ReadAt(p, at)
	return n, asCorrupt(err)
}

func asCorrupt(err error) error {
	if errors.Is(err, seal.ErrDamaged) {
		return corrupt("%w", err)
	}
	return err
}
