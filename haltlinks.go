package litefs

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// HaltCalls counts requests about write locks, by what they ask.
type HaltCalls struct{ Acquire, Renew, Commit, Outcome, Release atomic.Uint64 }

// countedLink counts what goes through a connection.
type countedLink struct {
	HaltLink
	calls *HaltCalls
}

func (l countedLink) Acquire(ctx context.Context, dbID uint32, token string) (HaltGrant, error) {
	l.calls.Acquire.Add(1)
	return l.HaltLink.Acquire(ctx, dbID, token)
}

func (l countedLink) Renew(ctx context.Context, dbID uint32, token string) (HaltNews, error) {
	l.calls.Renew.Add(1)
	return l.HaltLink.Renew(ctx, dbID, token)
}

func (l countedLink) Commit(ctx context.Context, dbID uint32, token string, tx HaltTx, ltx io.Reader, size int64) (HaltNews, error) {
	l.calls.Commit.Add(1)
	return l.HaltLink.Commit(ctx, dbID, token, tx, ltx, size)
}

func (l countedLink) Outcome(ctx context.Context, dbID uint32, token string, tx HaltTx) (HaltOutcome, error) {
	l.calls.Outcome.Add(1)
	return l.HaltLink.Outcome(ctx, dbID, token, tx)
}

func (l countedLink) Release(ctx context.Context, dbID uint32, token string) error {
	l.calls.Release.Add(1)
	return l.HaltLink.Release(ctx, dbID, token)
}

// haltLinks are connections to primaries that nobody uses now: the next hold spares a round trip or two, which it takes to
// make one.
type haltLinks struct {
	mu     sync.Mutex
	idle   []idleLink
	closed bool
}

type idleLink struct {
	link HaltLink
	url  string
	at   time.Time
}

// Bounds of what is kept. The server closes a connection that is idle for a minute.
const (
	maxIdleLinks  = 4
	idleLinkLasts = 30 * time.Second
)

// take returns a connection to url, nil if there is none.
func (l *haltLinks) take(url string) (link HaltLink) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var keep []idleLink
	for _, i := range l.idle {
		switch {
		case time.Since(i.at) > idleLinkLasts:
			i.link.Close()
		case link == nil && i.url == url:
			link = i.link
		default:
			keep = append(keep, i)
		}
	}
	l.idle = keep
	return link
}

// put keeps a connection that has done what was asked of it.
func (l *haltLinks) put(link HaltLink, url string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.idle) == maxIdleLinks {
		link.Close()
		return
	}
	l.idle = append(l.idle, idleLink{link, url, time.Now()})
}

func (l *haltLinks) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, i := range l.idle {
		i.link.Close()
	}
	l.idle = nil
}
