package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
)

// Tail is one log entry that another node has, or what stands in its way.
type Tail struct {
	DBID uint32
	At   Pos // newest position of the node's log

	// LTX is the entry; it is read before the next one is asked for. nil: the
	// node is somewhere else, and its log does not lead on from where we are.
	LTX *LTXReader
}

// TailClient is what a Client may be beside: it asks another node for what its
// logs have after some positions. docs/roll-forward.md says what for.
type TailClient interface {
	// Tails calls fn for each entry, those of one database in their order. An
	// error of fn ends it and is returned.
	Tails(ctx context.Context, rawurl string, after map[uint32]Pos, fn func(Tail) error) error
}

// rollForwardRetry is the pause before a follower that did not answer is asked again.
const rollForwardRetry = 250 * time.Millisecond

// rollForwardFromReplicas fetches from the known followers what the logs lost.
// No database is open. Followers that do not answer in time are left behind,
// with a warning: the node must come up without them.
func (s *Store) rollForwardFromReplicas(ctx context.Context) error {
	replicas := s.KnownReplicas()
	client, ok := s.Client.(TailClient)
	if len(replicas) == 0 || s.RollForwardTimeout <= 0 || !ok {
		return nil
	}
	logs, err := s.openTails()
	if err != nil {
		return err
	}
	s.Logger.Info("followers are asked for what was lost with the power", "followers", len(replicas), "for", s.RollForwardTimeout)
	deadline := time.Now().Add(s.RollForwardTimeout)
	var wg sync.WaitGroup
	for _, r := range replicas {
		wg.Go(func() {
			if err := s.askReplica(ctx, client, r, logs, deadline); err != nil {
				s.Logger.Warn("a follower could not be asked for what was lost with the power: transactions that only it has are set aside there, in lost+found, when it connects",
					"replica", r.NodeID, "url", r.URL, "last seen", r.Seen, "error", err)
			}
		})
	}
	wg.Wait()
	return logs.close(s)
}

// askReplica asks one follower until it has answered or the deadline has passed.
// What came before a cut counts.
func (s *Store) askReplica(ctx context.Context, client TailClient, r KnownReplica, logs *tailLogs, deadline time.Time) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(time.Until(deadline), func() { cancel(errNoAnswer) })
	defer silent.Stop()
	for {
		err := client.Tails(ctx, r.URL, logs.heads(), func(t Tail) error {
			silent.Stop() // it answers: now it takes as long as it brings something
			return logs.take(s, r, t)
		})
		if err == nil || !time.Now().Before(deadline) || ctx.Err() != nil {
			if cause := context.Cause(ctx); err != nil && cause != nil {
				err = errors.Join(cause, err)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(rollForwardRetry):
		}
	}
}

var errNoAnswer = errors.New("no answer in time")

// tailLogs are the logs of all databases, open to be continued and for nothing
// else.
type tailLogs struct {
	mu   sync.Mutex // guards everything below, and the logs
	logs map[uint32]*ltxlog.Log
	from map[uint32]Pos // where each was
}

func (s *Store) openTails() (*tailLogs, error) {
	ents, err := os.ReadDir(filepath.Join(s.path, "dbs"))
	if err != nil {
		return nil, fmt.Errorf("list the databases: %w", err)
	}
	t := &tailLogs{logs: make(map[uint32]*ltxlog.Log), from: make(map[uint32]Pos)}
	for _, ent := range ents {
		id, err := ParseDBID(ent.Name())
		if err != nil {
			continue
		}
		log, err := s.LogKeys.Open(s.DBDir(id), ltxName, FormatDBID(id), ltxlog.Options{FS: s.logFS, Logger: s.Logger, Buffers: &s.logBuffers})
		if err != nil {
			s.Logger.Error("a log cannot be read: what was lost of it is not fetched", "id", ent.Name(), "error", err)
			continue // its recovery will tell more
		}
		if head, ok := log.Head(); ok {
			t.from[id] = Pos{TXID: head.Max, Chksum: head.Post}
		}
		t.logs[id] = log
	}
	return t, nil
}

// heads returns where the logs are.
func (t *tailLogs) heads() map[uint32]Pos {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := make(map[uint32]Pos, len(t.logs))
	for id, log := range t.logs {
		if head, ok := log.Head(); ok {
			m[id] = Pos{TXID: head.Max, Chksum: head.Post}
		}
	}
	return m
}

// take adds an entry to its log, if it is news and joins. Followers are asked
// side by side, so another one may have brought it.
func (t *tailLogs) take(s *Store, from KnownReplica, tail Tail) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	log, ok := t.logs[tail.DBID]
	if !ok {
		return fmt.Errorf("entry of database %s, which was not asked for", FormatDBID(tail.DBID))
	}
	head, _ := log.Head()
	if tail.LTX == nil {
		if tail.At.TXID > head.Max {
			s.Logger.Warn("a follower is ahead and its log does not lead on from here: what it has beyond is set aside there, in lost+found",
				"id", FormatDBID(tail.DBID), "replica", from.NodeID, "at", tail.At.String(), "here", Pos{TXID: head.Max, Chksum: head.Post}.String())
		}
		return nil
	}
	if tail.LTX.MaxTXID <= head.Max {
		return nil
	}
	_, err := log.Import(io.LimitReader(tail.LTX, tail.LTX.Size), tail.LTX.Size, false)
	if errors.Is(err, ltxlog.ErrMismatch) {
		s.Logger.Warn("an entry of a follower does not join the log: what it has is set aside there, in lost+found", "id", FormatDBID(tail.DBID), "replica", from.NodeID, "error", err)
		return nil
	}
	return err
}

// close makes what came durable, and says what it was.
func (t *tailLogs) close(s *Store) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for id, log := range t.logs {
		if head, ok := log.Head(); ok && head.Max > t.from[id].TXID {
			s.stats.RolledForward.Add(head.Max - t.from[id].TXID)
			s.Logger.Warn("transactions that were lost with the power came back from a follower", "id", FormatDBID(id), "after", t.from[id].String(), "to", Pos{TXID: head.Max, Chksum: head.Post}.String())
		}
		if err := log.Close(); err != nil { // syncs
			errs = append(errs, fmt.Errorf("log of database %s: %w", FormatDBID(id), err))
		}
	}
	return errors.Join(errs...)
}
