package cas

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/litefs/litefs"
)

var seeds = flag.Int("cas.seeds", 20, "runs of TestRandom")

// memory is a store in memory. hook, if there is one, is called before and after each call is done.
type memory struct {
	mu      sync.Mutex
	docs    map[string]Doc
	number  int
	hashes  bool            // versions are hashes of the content
	written map[string]bool // names and versions that there were
	hook    func(ctx context.Context, put bool, done bool) error
}

func newMemory() *memory { return &memory{docs: map[string]Doc{}, written: map[string]bool{}} }

// errTwice is a value that the document has had before: what is late could be taken for what is now.
var errTwice = errors.New("one value twice")

func (m *memory) Get(ctx context.Context, name string) (Doc, error) {
	if err := m.call(ctx, false, false); err != nil {
		return Doc{}, err
	}
	m.mu.Lock()
	d := m.docs[name]
	m.mu.Unlock()
	return d, m.call(ctx, false, true)
}

func (m *memory) Put(ctx context.Context, name string, value []byte, version string) (string, error) {
	if err := m.call(ctx, true, false); err != nil {
		return "", err
	}
	next, err := m.put(name, value, version)
	if late := m.call(ctx, true, true); late != nil {
		err = late
	}
	return next, err
}

func (m *memory) put(name string, value []byte, version string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.docs[name].Version != version {
		return "", ErrConflict
	}
	m.number++
	d := Doc{Value: value, Version: strconv.Itoa(m.number)}
	if m.hashes {
		d.Version = fmt.Sprintf("%x", sha256.Sum256(value))
		if m.written[name+d.Version] {
			return "", errTwice
		}
		m.written[name+d.Version] = true
	}
	m.docs[name] = d
	return m.docs[name].Version, nil
}

func (m *memory) call(ctx context.Context, put, done bool) error {
	if m.hook == nil {
		return nil
	}
	return m.hook(ctx, put, done)
}

func (m *memory) Close()         {}
func (m *memory) String() string { return "the lease in memory" }

// A write of the record that was sent under a lease which is another's by now does nothing, also when it
// was sent just before the other node took the lease.
func TestLateRecord(t *testing.T) {
	ctx := t.Context()
	m := newMemory()
	var now time.Duration
	open := func(s Store, name string) *Leaser {
		t.Helper()
		l, err := New(Options{Store: s, TTL: time.Second, AdvertiseURL: "http://" + name, Now: func() time.Duration { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	acquire := func(l *Leaser) *Lease {
		t.Helper()
		lease, err := l.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return lease.(*Lease)
	}
	a, b := open(m, "a"), open(m, "b")
	old := acquire(a)
	if err := old.SetRecord(ctx, litefs.Record{NodeID: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Acquire(ctx); !errors.Is(err, litefs.ErrPrimaryExists) {
		t.Fatalf("Acquire of a lease that is held: %v", err)
	}
	now += 2 * time.Second

	// b takes the lease between a's look at the lock and its write.
	var next *Lease
	m.hook = func(_ context.Context, put, done bool) error {
		if put && !done {
			m.hook = nil
			next = acquire(b)
		}
		return nil
	}
	if err := old.SetRecord(ctx, litefs.Record{NodeID: "late"}); !errors.Is(err, litefs.ErrLeaseExpired) {
		t.Errorf("SetRecord: %v", err)
	}
	if r, err := b.Record(ctx); err != nil || r.NodeID != "a" {
		t.Errorf("the record is %+v, %v", r, err)
	}
	if err := next.SetRecord(ctx, litefs.Record{NodeID: "b"}); err != nil {
		t.Error(err)
	}
	if next.Token() <= old.Token() {
		t.Errorf("token %d after %d", next.Token(), old.Token())
	}
}

// A lock that says nothing of its end, or nothing that can be read, is not taken.
func TestStrangeLock(t *testing.T) {
	for value, want := range map[string]error{
		`{"id":"x","advertise-url":"http://x"}`:                                    litefs.ErrPrimaryExists,
		`{"id":"x","advertise-url":"http://x","ttl":"-1s","lock-delay":"0s"}`:      litefs.ErrPrimaryExists,
		`{"id":"x","advertise-url":"http://x","ttl":"1s","lock-delay":"tomorrow"}`: litefs.ErrPrimaryExists,
		`{"id":"x","advertise-url":"http://x","ttl":"1000h","lock-delay":"0s"}`:    litefs.ErrPrimaryExists,
		`hello`: nil,
		``:      nil,
	} {
		m := newMemory()
		m.docs[LockName] = Doc{[]byte(value), "7"}
		var now time.Duration
		l, err := New(Options{Store: m, TTL: time.Second, AdvertiseURL: "http://a", Now: func() time.Duration { return now }})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err = l.Acquire(t.Context())
			now += time.Minute
		}
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// Nodes with clocks that run at different rates, and a store that is late, loses answers, and does late
// what a caller has given up: one holder at a time, tokens that grow, and no record that was acknowledged
// is lost or replaced by a former holder's.
func TestRandom(t *testing.T) {
	for seed := range uint64(*seeds) {
		synctest.Test(t, func(t *testing.T) { random(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func random(t *testing.T, seed uint64) {
	const (
		ttl, lockDelay = 10 * time.Second, time.Second
		length         = 10 * time.Minute
	)
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 1))
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	pause := func(ctx context.Context, d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	m := newMemory()
	var wg sync.WaitGroup
	faulty := &faultyMemory{memory: m, t: t, draw: draw, pause: pause, wg: &wg}
	c := &checker{t: t}
	for i := range 3 {
		rate := 1 + 0.04*float64(i-1)
		start := time.Now()
		numbered := seed%2 == 0
		m.hashes = !numbered
		l, err := New(Options{
			Store: faulty, Numbered: numbered, TTL: ttl, LockDelay: lockDelay, AdvertiseURL: fmt.Sprint("http://", i),
			Now: func() time.Duration { return time.Duration(float64(time.Since(start)) * rate) },
		})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				if l.AwaitVacant(ctx) != nil {
					pause(ctx, time.Second)
					continue
				}
				lease, err := l.Acquire(ctx)
				if err != nil {
					pause(ctx, time.Second)
					continue
				}
				c.hold(ctx, l, lease.(*Lease), draw, pause)
			}
		})
	}
	wg.Wait()
	if c.taken < 5 {
		t.Errorf("the lease was taken %d times", c.taken)
	}
}

// faultyMemory is late, and sometimes worse.
type faultyMemory struct {
	*memory
	t     *testing.T
	draw  func(int) int
	pause func(context.Context, time.Duration)
	wg    *sync.WaitGroup
}

var errLost = errors.New("connection lost")

func (f *faultyMemory) Get(ctx context.Context, name string) (Doc, error) {
	f.late(ctx)
	d, err := f.memory.Get(ctx, name)
	f.late(ctx)
	if f.draw(20) == 0 {
		err = errLost
	}
	return d, errors.Join(err, ctx.Err())
}

func (f *faultyMemory) Put(ctx context.Context, name string, value []byte, version string) (string, error) {
	f.late(ctx)
	if f.draw(15) == 0 {
		// It is done, some time later, or never.
		if f.draw(3) > 0 {
			d := time.Duration(f.draw(30000)) * time.Millisecond
			f.wg.Go(func() {
				time.Sleep(d)
				if _, err := f.put(name, value, version); errors.Is(err, errTwice) {
					f.t.Errorf("%q: %v", name, err)
				}
			})
		}
		return "", errLost
	}
	next, err := f.memory.Put(ctx, name, value, version)
	if errors.Is(err, errTwice) {
		f.t.Errorf("%q: %v", name, err)
	}
	f.late(ctx)
	if f.draw(15) == 0 {
		return f.memory.Put(ctx, name, value, version) // by a client that tries again by itself
	}
	if f.draw(15) == 0 || ctx.Err() != nil {
		return "", errLost
	}
	return next, err
}

func (f *faultyMemory) late(ctx context.Context) {
	d := time.Duration(f.draw(200)) * time.Millisecond
	if f.draw(40) == 0 {
		d = time.Duration(f.draw(20)) * time.Second
	}
	f.pause(ctx, d)
}

// checker is what is known of all holders.
type checker struct {
	t *testing.T

	mu     sync.Mutex
	holder *Lease
	taken  int
	token  uint64
	acked  uint64 // the highest that a record was acknowledged with
}

// hold is the life of a holder: it renews, writes records that count, sleeps too long, gives back.
func (c *checker) hold(ctx context.Context, l *Leaser, lease *Lease, draw func(int) int, pause func(context.Context, time.Duration)) {
	c.mu.Lock()
	if c.holder != nil && c.holder.Remaining() > 0 {
		c.t.Errorf("a second holder while the first has %v left", c.holder.Remaining())
	}
	if lease.Token() <= c.token {
		c.t.Errorf("token %d after %d", lease.Token(), c.token)
	}
	c.holder, c.token = lease, lease.Token()
	c.taken++
	acked := c.acked
	c.mu.Unlock()

	count := uint64(0)
	r, err := l.Record(ctx)
	switch {
	case err == nil:
		count = r.Epoch
	case !errors.Is(err, litefs.ErrNoRecord):
		_ = lease.Close()
		return
	}
	if count < acked {
		c.t.Errorf("a new holder reads record %d after %d was acknowledged", count, acked)
	}
	sure := true // nothing of ours is on its way
	for ctx.Err() == nil && !lease.term.Ended() {
		switch draw(12) {
		case 0:
			_ = lease.Close() // with or without success
			return
		case 1:
			pause(ctx, time.Duration(draw(15))*time.Second)
		case 2, 3:
			if sure && c.isHolder(lease) {
				r, err := l.Record(ctx)
				if err == nil && c.isHolder(lease) && r.Epoch != count {
					c.t.Errorf("the holder's record is %d, want %d", r.Epoch, count)
				}
			}
			next := count + uint64(draw(2)) // the same again, or more
			if err := lease.SetRecord(ctx, litefs.Record{Epoch: next}); err != nil {
				sure = false
				break
			}
			count = next
			c.mu.Lock()
			c.acked = max(c.acked, count)
			c.mu.Unlock()
		default:
			_ = lease.Renew(ctx) // with or without success
			pause(ctx, lease.TTL()/3)
		}
	}
}

func (c *checker) isHolder(lease *Lease) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holder == lease && lease.Remaining() > 0
}
