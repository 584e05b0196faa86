package http

import (
	"net/http"
	"time"
)

// maxWrite bounds what one deadline covers, in bytes: at the slowest pace that is still progress, a
// stream gets this much through in the time of one stall.
const maxWrite = 64 << 10

// streamWriter writes the body of a stream. A write or flush that makes no progress for the time of a
// stall fails and ends the stream.
type streamWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration

	armed time.Time // when the deadline was last set
}

// arm moves the deadline on. Setting it costs a message to the connection's goroutine, so a deadline
// that has lost little of its time is left as it is.
func (w *streamWriter) arm() error {
	now := time.Now()
	if now.Sub(w.armed) < w.stall/32 {
		return nil
	}
	if err := w.rc.SetWriteDeadline(now.Add(w.stall)); err != nil {
		return err
	}
	w.armed = now
	return nil
}

func (w *streamWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if err := w.arm(); err != nil {
			return n, err
		}
		m, err := w.w.Write(p[:min(len(p), maxWrite)])
		n += m
		if err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

// Flush sends what was written.
func (w *streamWriter) Flush() error {
	if err := w.arm(); err != nil {
		return err
	}
	return w.rc.Flush()
}
