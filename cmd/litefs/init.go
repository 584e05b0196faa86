package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/litefs/litefs/internal/supervise"
)

// isInit reports whether this process is the first one of a container, and may
// get orphans: then it only runs another one of itself, which does what it was
// asked. Reaping every child within that one would take the ends of its own from
// those who wait for them.
func isInit(args []string) bool {
	if os.Getpid() != 1 || len(args) == 0 {
		return false
	}
	return args[0] == "mount" || args[0] == "run" || strings.HasPrefix(args[0], "-")
}

// runInit returns the exit code of the other one.
func runInit(args []string, stderr io.Writer) int {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(stderr, "litefs: find this binary:", err)
		return 1
	}
	code, err := supervise.Run(context.Background(), supervise.Options{
		Argv:  append([]string{self}, args...),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Signals: signals, Init: true,
	})
	if err != nil {
		fmt.Fprintln(stderr, "litefs:", err)
	}
	return code
}
