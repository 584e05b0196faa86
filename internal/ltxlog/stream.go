package ltxlog

import (
	"errors"
)

// Stream is Pages with one reading of a large entry: fn sees pages before the whole is verified. What
// it makes of them must not be seen by anybody unless Stream returns nil. ErrCorrupt: the content is
// damaged.
func (l *Log) Stream(e Entry, fn func(pgno uint32, data []byte) error) (err error) {
	if e.Size <= int64(l.spill) {
		return l.Pages(e, fn) // one reading, too
	}
	f, err := l.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var refused error // of fn: no fault of the entry
	got, err := l.buffers.decode(f, e.Size, nil, func(f frame) error {
		refused = fn(f.pgno, f.data)
		return refused
	})
	if refused != nil {
		return refused
	}
	return isEntry(e, got, err)
}
