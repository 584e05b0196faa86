package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/guardian"
	"github.com/litefs/litefs/internal/supervise"
)

func runMount(ctx context.Context, args []string, std stdio, signals *signals) (err error) {
	args, program := cutCommand(args)
	f := newFlags("mount", "litefs mount [flags] [DIR] [-- COMMAND ARGS]",
		"Mounts a directory. SQLite databases in it are captured transaction by\n"+
			"transaction and sent to the nodes that follow. With DIR there is no file: the\n"+
			"node is a primary, its data lies in .NAME.litefs beside DIR. Without DIR and\n"+
			"-config, ./litefs.yml, ~/litefs.yml and /etc/litefs.yml are looked for.\n\n"+
			"After --, a command is started once the mount is ready. It gets the signals,\n"+
			"its end ends the mount, and its exit code is ours.",
		"litefs mount -config litefs.yml -- myapp -addr :8080")
	var c configFlags
	c.register(f)
	debug := f.Bool("debug", false, "the same as -set log.debug=true")
	fuseDebug := f.Bool("fuse.debug", false, "the same as -set fuse.debug=true")
	grace := f.Duration("grace", supervise.DefaultGrace, "`TIME` a command has to end before it is killed")
	skipUnmount := f.Bool("skip-unmount", false, "not built: a stale mount is cleaned up only when nothing uses it")
	tracing := f.Bool("tracing", false, "all that there is to say, on standard output")
	positional, err := f.parse(args, std)
	if err != nil {
		return err
	}
	switch {
	case *skipUnmount:
		return usagef("-skip-unmount is not built: a stale mount is cleaned up only when nothing uses it; remove the flag")
	case *grace <= 0:
		return usagef("-grace %s must be more than 0", *grace)
	case program != nil && (len(program) == 0 || program[0] == ""):
		return usagef("no command after --")
	}
	if *debug {
		c.set = append(c.set, "log.debug=true")
	}
	if *fuseDebug {
		c.set = append(c.set, "fuse.debug=true")
	}

	cfg, err := c.load(positional)
	if err != nil {
		return err
	}
	if program != nil {
		cfg.Exec = []config.Command{{Argv: program}}
	}
	if err := checkDirs(cfg); err != nil {
		return err
	}
	ward, err := guardian.FromEnvironment()
	if err != nil {
		return err
	}
	node := runDaemon
	switch {
	case ward != nil:
		node = runWard(ward)
		// Programs are the guardian's, and so is what comes after a fault.
		cfg.Exec, cfg.ExitOnError = nil, true
	case cfg.Fuse.Guardian:
		node = runGuarded(std)
	}
	logger, trace := newLogger(cfg, std, *tracing)
	defer func() { err = errors.Join(err, trace.Close()) }()
	m := &mount{
		cfg:     cfg,
		logger:  logger,
		daemon:  node,
		signals: signals,
		std:     std,
		grace:   *grace,
	}
	if ward == nil {
		m.notices = os.Getenv(supervise.NotifySocket)
	}
	return m.run(ctx)
}

// mount is a node and the programs that run on it.
type mount struct {
	cfg     *config.Config
	logger  *slog.Logger
	daemon  func(context.Context, daemonOptions) error
	signals *signals
	std     stdio
	grace   time.Duration
	notices string // socket of systemd; "": none
}

// run returns when the node has ended and all is cleaned up. The error is an
// *exitError when a program decides the exit code.
func (m *mount) run(ctx context.Context) error {
	err := m.serve(ctx)
	var exit *exitError
	if err == nil || m.cfg.ExitOnError || errors.As(err, &exit) || ctx.Err() != nil {
		return err
	}
	m.logger.Error("the node has failed; exit-on-error is false, the process stays until a signal comes", "error", err)
	<-ctx.Done()
	return err
}

// serve runs the node and, once it is ready, the programs on it. Whichever ends
// first ends the other.
func (m *mount) serve(ctx context.Context) error {
	nodeCtx, stopNode := context.WithCancel(ctx)
	defer stopNode()
	programCtx, stopPrograms := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPrograms()

	ready := make(chan roleQuestion, 1)
	ended := make(chan struct{})
	var nodeErr error // written before ended is closed
	go func() {
		defer close(ended)
		defer stopPrograms()
		nodeErr = m.daemon(nodeCtx, daemonOptions{
			Config: m.cfg,
			Logger: m.logger,
			Ready: func(isPrimary roleQuestion) {
				select {
				case ready <- isPrimary:
				default: // it has said so before
				}
			},
		})
		if errors.Is(nodeErr, context.Canceled) && nodeCtx.Err() != nil {
			nodeErr = nil // it was asked to end, and says so
		}
	}()

	var isPrimary roleQuestion
	select {
	case isPrimary = <-ready:
		m.notify(supervise.NotifyReady)
		defer m.notify(supervise.NotifyStopping)
	case <-ended:
		return nodeErr
	}
	if len(m.cfg.Exec) == 0 {
		<-ended
		return nodeErr
	}
	programErr := m.runPrograms(programCtx, isPrimary)
	if programErr != nil && !m.cfg.ExitOnError && programCtx.Err() == nil && ctx.Err() == nil {
		m.logger.Error("the command has failed; exit-on-error is false, the mount stays until a signal comes", "error", programErr)
		select {
		case <-ctx.Done():
		case <-ended:
		}
	}
	stopNode()
	<-ended
	if nodeErr != nil {
		return nodeErr
	}
	return programErr
}
