package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// signals is what becomes of the signals of this process.
//
// The first SIGINT or SIGTERM (or SIGHUP, when the terminal goes) ends the
// context: at whatever stage the command is, it cleans up. The second one ends
// the process at once. While a program runs, it gets the signals instead; its
// end is what ends the command.
type signals struct {
	ctx    context.Context // ends with the first word to end, or when the program that got it has ended
	cancel context.CancelFunc
	exit   func(code int)
	in     chan os.Signal
	quit   chan struct{}
	done   chan struct{}

	mu      sync.Mutex
	program *program // nil: nobody to hand signals to
	ending  bool     // the first word to end has come
}

// program takes the signals while it runs.
type program struct {
	signals chan os.Signal
	ended   chan struct{}
}

// killWait is how long the second signal waits for the program to be killed
// before this process goes without looking.
const killWait = 2 * time.Second

// watchSignals begins to watch. The context ends with the first signal.
func watchSignals(parent context.Context, exit func(code int)) (context.Context, *signals) {
	ctx, cancel := context.WithCancel(parent)
	s := &signals{
		ctx:    ctx,
		cancel: cancel,
		exit:   exit,
		in:     make(chan os.Signal, 16),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	signal.Notify(s.in, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
	if !signal.Ignored(syscall.SIGHUP) { // nohup asks to outlive the terminal
		signal.Notify(s.in, syscall.SIGHUP)
	}
	go func() {
		defer close(s.done)
		for {
			select {
			case sig := <-s.in:
				s.take(sig.(syscall.Signal))
			case <-s.quit:
				return
			}
		}
	}()
	return ctx, s
}

// stop ends the watch: signals do again what the kernel does with them.
func (s *signals) stop() {
	signal.Stop(s.in)
	close(s.quit)
	<-s.done
	s.cancel()
}

// take handles one signal.
func (s *signals) take(sig syscall.Signal) {
	s.mu.Lock()
	p := s.program
	isEnd := sig == syscall.SIGINT || sig == syscall.SIGTERM || sig == syscall.SIGHUP && p == nil
	second := isEnd && s.ending
	s.ending = s.ending || isEnd
	s.mu.Unlock()

	if p != nil {
		select {
		case p.signals <- sig:
		default: // the program is being drowned in signals; one less is no loss
		}
	}
	switch {
	case second:
		if p != nil {
			wait := time.NewTimer(killWait)
			select {
			case <-p.ended:
			case <-wait.C:
			}
		}
		s.exit(128 + int(sig))
	case isEnd && p == nil:
		s.cancel()
	}
}

// handOver gives the signals to a program until release is called. It gives
// false when the word to end has already come: then nothing is to be started.
func (s *signals) handOver() (in <-chan os.Signal, release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, nil, false
	}
	p := &program{signals: make(chan os.Signal, 16), ended: make(chan struct{})}
	s.program = p
	return p.signals, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(p.ended)
		s.program = nil
		if s.ending {
			// The word to end was the program's; now it is ours too.
			s.cancel()
		}
	}, true
}

// isEnding reports whether the word to end has come.
func (s *signals) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// ended is closed when the word to end has come while no program ran.
func (s *signals) ended() <-chan struct{} { return s.ctx.Done() }
