package ltxlog

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

// TestConcurrent: readers, syncs, compaction and retention beside appends, on the real disk.
func TestConcurrent(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	m := newModel(4, 512)
	m.append(t, l, false)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, work := range []func() error{
		l.Sync,
		func() error { return readAll(l) },
		func() error { return readAll(l) },
		func() error {
			head, _ := l.Head()
			_, err := l.Compact(Compaction{MinEntries: 3, Before: head.Max})
			return err
		},
		func() error { _, _, err := l.Retain(time.Time{}, Retention{MaxBytes: 40000}); return err },
	} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := work(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range 200 {
		m.append(t, l, n%20 == 0)
	}
	close(done)
	wg.Wait()
	checkChain(t, l)
}

// readAll reads every entry both ways. An entry may go between being listed and being opened.
func readAll(l *Log) error {
	for _, e := range l.Entries() {
		r, err := l.OpenEntry(e)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		if got, err := l.buffers.decode(bytes.NewReader(b), int64(len(b)), nil, nil); err != nil || got != e {
			return errors.Join(errors.New("entry changed while it was read"), err)
		}
		err = l.Pages(e, func(uint32, []byte) error { return nil })
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

func TestClosed(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	m := newModel(4, 512)
	e := m.append(t, l, false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := m.next()
	_, aerr := l.Append(c.h, c.emit, c.post, false)
	_, ierr := l.Import(bytes.NewReader(nil), 1000, false)
	_, oerr := l.OpenEntry(e)
	for _, err := range []error{aerr, ierr, oerr, l.Sync(), l.TruncateAfter(0)} {
		if !errors.Is(err, ErrClosed) {
			t.Fatalf("use of a closed log: %v, want ErrClosed", err)
		}
	}
}
