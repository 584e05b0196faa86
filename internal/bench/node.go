package bench

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// nodeLog passes on what a node logs, and notes when it said that it is connected to its primary.
type nodeLog struct {
	to io.Writer // may be nil

	mu        sync.Mutex
	connected time.Time // zero: not yet
}

// Write takes one line.
func (l *nodeLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("connected to the primary")) {
		l.mu.Lock()
		if l.connected.IsZero() {
			l.connected = time.Now()
		}
		l.mu.Unlock()
	}
	if l.to == nil {
		return len(line), nil
	}
	return l.to.Write(line)
}

// connectedAt is when the node was first connected to its primary, as soon as it has said so.
func (m *member) connectedAt() (time.Time, bool) {
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	return m.log.connected, !m.log.connected.IsZero()
}

// cpu returns the time that primary and replica have spent on processors so far.
func (p *pair) cpu() (spent [2]time.Duration, err error) {
	for i, m := range []*member{p.primary, p.replica} {
		if spent[i], err = processCPU(m.proc.PID()); err != nil {
			return spent, err
		}
	}
	return spent, nil
}

// processCPU returns the user and system time of a process (proc_pid_stat(5), fields 14 and 15), which the
// kernel tells in hundredths of a second.
func processCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name before it may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("processor time of process %d: %q", pid, b)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}
