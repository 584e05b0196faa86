// Command litefs mounts a directory in which SQLite databases are captured
// transaction by transaction and replicated to other nodes.
//
//	litefs mount DIR                  a single node, its data beside DIR
//	litefs mount -config litefs.yml   a node of a cluster
//	litefs help                       everything else
//
// One file a subcommand. Exit codes: 0, 2 for a fault of usage or
// configuration, 1 for any other; of "mount" and "run -- COMMAND", the command's own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/supervise"
)

func main() {
	if isInit(os.Args[1:]) {
		os.Exit(runInit(os.Args[1:], os.Stderr))
	}
	leaveProcessors()
	std := stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	ctx, signals := watchSignals(context.Background(), os.Exit)
	err := run(ctx, os.Args[1:], std, signals)
	signals.stop()
	os.Exit(report(err, std.err))
}

// readers is how many goroutines take requests of the kernel (package fuse): one, and one that relieves it.
const readers = 2

// leaveProcessors gives the scheduler of Go more processors than there are, unless the environment says how many. A
// goroutine that waits in a system call keeps one until the runtime's monitor takes it away, and has to find another
// one afterwards: on a machine of two CPUs the readers would hold all there are, and each request would pay for that.
func leaveProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + readers)
	}
}

// stdio is the standard streams of a subcommand. They are files, for a program
// that is started gets them as they are.
type stdio struct {
	in, out, err *os.File
}

// command is one subcommand. Its run returns a *usageError for what the caller
// must write differently; only main ends the process.
type command struct {
	name    string
	summary string
	run     func(ctx context.Context, args []string, std stdio) error
}

// commands lists the subcommands as help shows them.
func commands(signals *signals) []command {
	return []command{
		{"mount", "mount a directory and replicate the databases in it",
			func(ctx context.Context, args []string, std stdio) error {
				return runMount(ctx, args, std, signals)
			}},
		{"run", "run a command on a node, as its primary",
			func(ctx context.Context, args []string, std stdio) error {
				return runRun(ctx, args, std, signals)
			}},
		{"config", "check a configuration and print what is in force", runConfig},
		{"demo", "two nodes on this machine, for a first look", runDemo},
		{"bench", "measure the mount against a plain directory", runBench},
		{"status", "role, databases, replicas and lag of the running node", runStatus},
		{"durability", "what is promised of commits: show, set", runDurability},
		{"export", "write a checked copy of a database to a file", runExport},
		{"import", "make a file the content of a database", runImport},
		{"restore", "write a database out of an archive to a file", runRestore},
		{"history", "list what an archive has", runHistory},
		{"keys", "the keys of an encrypted archive: list, rotate, destroy", runKeys},
		{"wait", "wait until the running node has a position", runWait},
		{"scrub", "read databases of the running node and check everything", runScrub},
		{"repair", "fetch a replica's damaged pages from its primary", runRepair},
		{"promote", "make the running node the primary", runPromote},
		{"demote", "make the primary hand over to another node", runDemote},
		{"adopt", "take over a data directory of LiteFS 0.5", runAdopt},
		{"doctor", "check this machine for what a node needs", runDoctor},
		{"lost", "transactions that the cluster did not keep: list, export", runLost},
		{"verify", "check logs, checksums and databases of a node", runVerify},
		{"ltx", "list and dump the transactions of a database", runLTX},
		{"upgrade", "replace the daemon of a running node by another binary", runUpgrade},
		{"completion", "print a script for the completion of a shell",
			func(ctx context.Context, args []string, std stdio) error {
				return runCompletion(ctx, args, std, signals)
			}},
		{"version", "print the version", runVersion},
	}
}

// run dispatches to a subcommand.
func run(ctx context.Context, args []string, std stdio, signals *signals) error {
	if len(args) == 0 {
		return usagef("no command given: litefs help lists the commands")
	}
	name, rest := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		return runHelp(ctx, rest, std, signals)
	case "-version", "--version":
		name = "version"
	case sqlAppCommand:
		return runSQLApp(ctx, rest, std)
	}
	// The first LiteFS had no commands: "litefs -config FILE".
	if strings.HasPrefix(name, "-") {
		name, rest = "mount", args
	}
	for _, cmd := range commands(signals) {
		if cmd.name == name {
			return cmd.run(ctx, rest, std)
		}
	}
	return usagef("unknown command %q: litefs help lists the commands", name)
}

func runHelp(ctx context.Context, args []string, std stdio, signals *signals) error {
	if len(args) == 0 {
		printUsage(std.out, signals)
		return nil
	}
	if args[0] == "help" || strings.HasPrefix(args[0], "-") {
		return usagef("want: litefs help COMMAND")
	}
	return run(ctx, []string{args[0], "-h"}, std, signals)
}

func printUsage(w io.Writer, signals *signals) {
	fmt.Fprint(w, "usage: litefs COMMAND [flags]\n\nReplicated SQLite through a mounted directory.\n\nCommands:\n")
	for _, cmd := range commands(signals) {
		fmt.Fprintf(w, "  %-12s%s\n", cmd.name, cmd.summary)
	}
	fmt.Fprint(w, "\nExample:\n  litefs mount /srv/app/data -- /usr/bin/app\n\nlitefs help COMMAND tells more. Exit codes: 0; 1 a fault; 2 a wrong command line or\nconfiguration, nothing was touched; of mount and run, their command's own.\n")
}

// report prints err as one line and returns the exit code it stands for.
func report(err error, w io.Writer) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	fmt.Fprintf(w, "litefs: %s\n", strings.Join(strings.Split(strings.TrimSpace(err.Error()), "\n"), "; "))

	var usage *usageError
	var start *supervise.StartError
	switch {
	case errors.As(err, &usage), errors.Is(err, config.ErrInvalid):
		return 2
	case errors.As(err, &start):
		return start.Code
	}
	return 1
}

// usageError is a fault of the command line: exit code 2.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// exitError ends the process with a code and no word: whoever made the code
// has said why.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }
