package litefs

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
)

// TestBrokenOff: an exchange that ended with its connection is told from an answer of the primary.
func TestBrokenOff(t *testing.T) {
	for _, err := range []error{io.ErrUnexpectedEOF, io.EOF, syscall.ECONNRESET, syscall.ECONNREFUSED} {
		wrapped := fmt.Errorf("ask: %w", err)
		if got := brokenOff(wrapped); !errors.Is(got, errBrokenOff) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{nil, ErrBusy, ErrSnapshotNeeded, syscall.EIO} {
		if got := brokenOff(err); errors.Is(got, errBrokenOff) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}
