package http

import (
	"bufio"
	"io"
	"net/http"
	"time"
)

// streamWriter writes the body of a stream, buffered until Flush. Bytes that find no taker for the time
// of a stall fail a write or flush, and end the stream.
type streamWriter struct {
	buffer
	w *deadlineWriter
}

// buffer is a bufio.Writer or a blockBuffer.
type buffer interface {
	io.Writer
	Flush() error
}

func newStreamWriter(w http.ResponseWriter, rc *http.ResponseController, stall time.Duration) *streamWriter {
	dw := &deadlineWriter{w: w, rc: rc, stall: stall}
	return &streamWriter{bufio.NewWriterSize(dw, maxBlock), dw}
}

// newBlockStreamWriter returns a writer of a body in blocks.
func newBlockStreamWriter(w http.ResponseWriter, rc *http.ResponseController, stall time.Duration) *streamWriter {
	dw := &deadlineWriter{w: w, rc: rc, stall: stall}
	return &streamWriter{&blockBuffer{w: dw}, dw}
}

// Flush sends what was written.
func (w *streamWriter) Flush() error {
	if err := w.buffer.Flush(); err != nil {
		return err
	}
	return w.w.flush()
}

// deadlineWriter moves the deadline of the answer on with each write.
type deadlineWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration

	armed time.Time // when the deadline was last set
}

// arm moves the deadline on. Setting it costs something, so a deadline
// that has lost little of its time is left as it is.
func (w *deadlineWriter) arm() error {
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

func (w *deadlineWriter) Write(p []byte) (n int, err error) {
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

func (w *deadlineWriter) flush() error {
	if err := w.arm(); err != nil {
		return err
	}
	return w.rc.Flush()
}
