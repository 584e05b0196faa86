package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCalmMonitor looks whether the thread whose naps may end late is the one that naps all the time.
func TestCalmMonitor(t *testing.T) {
	if err := calmMonitor(); err != nil {
		t.Fatal(err)
	}
	id, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	slack, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", id))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(slack)); got != monitorSlack {
		t.Errorf("slack of thread %d is %s ns, want %s", id, got, monitorSlack)
	}
	nap := fmt.Sprintf("%d ", unix.SYS_NANOSLEEP)
	seen, end := 0, time.Now().Add(30*time.Second)
	for ; seen < 100; seen++ { // others nap too, now and then
		call, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", id))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(call), nap) {
			seen = 0
		}
		if time.Now().After(end) {
			t.Fatalf("thread %d does not nap all the time: it is not the monitor; it is in %q", id, call)
		}
	}
}
