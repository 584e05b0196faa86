package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// progress shows how far something is that may take long: a bar on a terminal,
// else a line now and then, so that a log has few of them and a quick work none.
type progress struct {
	w     *os.File
	what  string // like "exporting app.db"
	bar   bool
	next  time.Time // no report before
	shown bool
}

const (
	barWidth = 30 // characters
	barPause = 100 * time.Millisecond
	// linePause is long: who reads lines wants to know that it goes on.
	linePause = 10 * time.Second
)

func newProgress(w *os.File, what string) *progress {
	p := &progress{w: w, what: what, bar: isTerminal(w)}
	if !p.bar {
		p.next = time.Now().Add(linePause)
	}
	return p
}

// report is told how many of total bytes are done. A terminal that is gone is no
// reason to stop, so errors of writing are dropped.
func (p *progress) report(done, total int64) {
	now := time.Now()
	if now.Before(p.next) || total <= 0 {
		return
	}
	if !p.bar {
		p.next = now.Add(linePause)
		_, _ = fmt.Fprintf(p.w, "litefs: %s: %s of %s\n", p.what, size(done), size(total))
		return
	}
	p.next, p.shown = now.Add(barPause), true
	_, _ = fmt.Fprintf(p.w, "\r%s %s\x1b[K", p.what, drawBar(done, total))
}

// drawBar shows done of total bytes; total is more than 0.
func drawBar(done, total int64) string {
	done = min(done, total)
	full := int(float64(barWidth) * float64(done) / float64(total))
	return fmt.Sprintf("[%s%s] %3d%%, %s of %s", strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
		int64(100*float64(done)/float64(total)), size(done), size(total))
}

// end takes the bar away.
func (p *progress) end() {
	if p.shown {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
	}
}
