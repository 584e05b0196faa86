package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/supervise"
)

// Pauses between the end of a program and its next start: the longer, the more
// often it has ended soon after its start.
const (
	restartMin  = time.Second
	restartMax  = 30 * time.Second
	restartCalm = time.Minute // a program that ran for so long begins with the least again
)

// runPrograms runs all programs but the last to their end, one after the other,
// and then the last. The first that fails, or that is told to end, is the last
// one to run. If the last one is not for this node, it waits for the end.
func (m *mount) runPrograms(ctx context.Context, isPrimary roleQuestion) error {
	for i, cmd := range m.cfg.Exec {
		last := i == len(m.cfg.Exec)-1
		why, err := m.leaveOut(ctx, cmd, isPrimary)
		switch {
		case err != nil:
			return err
		case why == "":
			if err := m.runAgain(ctx, cmd); err != nil {
				return err
			}
		default:
			m.logger.Info("the command is left out", "program", cmd.Argv[0], "reason", why)
			if last {
				select {
				case <-m.signals.ended():
				case <-ctx.Done():
				}
			}
		}
	}
	return nil
}

// leaveOut says why a command is not for this node; "" if it is.
func (m *mount) leaveOut(ctx context.Context, cmd config.Command, isPrimary roleQuestion) (why string, err error) {
	if cmd.IfCandidate && !m.cfg.Lease.Candidate {
		return "if-candidate: this node may not become the primary", nil
	}
	if !cmd.IfPrimary {
		return "", nil
	}
	primary, err := isPrimary(ctx)
	if err != nil {
		return "", fmt.Errorf("if-primary of %s: %w", cmd.Argv[0], err)
	}
	if !primary {
		return "if-primary: this node is not the primary", nil
	}
	return "", nil
}

// runAgain runs a program for as often as it is to be started.
func (m *mount) runAgain(ctx context.Context, cmd config.Command) error {
	for pause := restartMin; ; pause = min(2*pause, restartMax) {
		began := time.Now()
		err := m.programs().run(ctx, cmd.Argv)
		var exit *exitError
		failed := errors.As(err, &exit)
		again := failed && cmd.Restart == config.RestartOnFailure || (failed || err == nil) && cmd.Restart == config.RestartAlways
		if !again || m.signals.isEnding() || ctx.Err() != nil {
			return err
		}
		if time.Since(began) > restartCalm {
			pause = restartMin
		}
		m.logger.Warn("the command is started again", "program", cmd.Argv[0], "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-m.signals.ended():
			timer.Stop()
			return err
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

func (m *mount) programs() programs {
	return programs{signals: m.signals, std: m.std, grace: m.grace, logger: m.logger}
}

// programs runs programs in place of this process: they have its streams and get
// its signals.
type programs struct {
	signals *signals
	std     stdio
	grace   time.Duration
	logger  *slog.Logger
}

// run runs one program to its end: an *exitError if its code is not 0. It starts
// nothing when the word to end has come already.
func (p programs) run(ctx context.Context, argv []string) error {
	in, release, ok := p.signals.handOver()
	if !ok {
		return nil
	}
	defer release()
	if ctx.Err() != nil {
		return nil
	}
	p.logger.Info("starting the command", "program", argv[0])
	code, err := supervise.Run(ctx, supervise.Options{
		Argv:    argv,
		Env:     programEnv(os.Environ()),
		Stdin:   p.std.in,
		Stdout:  p.std.out,
		Stderr:  p.std.err,
		Signals: in,
		Grace:   p.grace,
		Logger:  p.logger,
	})
	if err != nil {
		return err
	}
	p.logger.Info("the command has ended", "program", argv[0], "code", code)
	if code != 0 {
		return &exitError{code}
	}
	return nil
}

// programEnv is the environment of a program: HOSTNAME is always there, as for
// the configuration, and systemd hears of the state from us alone.
func programEnv(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(s string) bool { return strings.HasPrefix(s, supervise.NotifySocket+"=") })
	if slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "HOSTNAME=") }) {
		return env
	}
	if host, err := os.Hostname(); err == nil {
		env = append(env, "HOSTNAME="+host)
	}
	return env
}

// notify tells systemd.
func (m *mount) notify(state string) {
	if err := supervise.Notify(m.notices, state); err != nil {
		m.logger.Warn("systemd does not hear of the state", "error", err)
	}
}
