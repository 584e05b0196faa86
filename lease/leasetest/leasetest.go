// Package leasetest holds what every lease service must do, as tests that a backend runs against its
// real server: one holder at a time, tokens that grow, a record that only the holder writes, and an
// answer or an error in time whatever the server does.
package leasetest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/leaseserver"
)

// Backend is a lease service under test.
type Backend struct {
	// TTL of the leases. The suite waits for its end about ten times.
	TTL time.Duration

	// Start starts a server that keeps its data over a restart.
	Start func(context.Context, leaseserver.Options) (*leaseserver.Server, error)

	// Wire says how to be in between, where the service does not speak HTTP.
	Wire *Wire

	// Open makes the leaser of one node.
	Open func(Options) (litefs.Leaser, error)

	// EndSession ends what the holder of the key renews, at the server, behind the holder's back.
	// RemoveKey removes the key that it holds.
	EndSession, RemoveKey func(ctx context.Context, url, key string) error
}

// Options are those of one node's leaser.
type Options struct {
	URL, Key               string
	Hostname, AdvertiseURL string
	TTL                    time.Duration
	Now                    func() time.Duration // nil: the backend's default
	Former                 string
	Remember               func(string)
}

// patience bounds every wait for something that should be quick.
const patience = 2 * time.Minute

// Main is for TestMain: its value is the exit code. The tests wait for leases to end, most of the time: as
// many at once as there are processors would take minutes.
func Main(m *testing.M) int {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Run runs the suite.
func Run(t *testing.T, b Backend) {
	t.Run("Shared", func(t *testing.T) {
		t.Parallel()
		s := suite{Backend: b, server: startServer(t, b)}
		for name, test := range map[string]func(*testing.T, suite){
			"OneHolder":    oneHolder,
			"GivenBack":    givenBack,
			"Expired":      expired,
			"Renewed":      renewed,
			"Restarted":    restarted,
			"Record":       record,
			"SetOnce":      setOnce,
			"LostSession":  lostSession,
			"RemovedKey":   removedKey,
			"RenewedAt":    renewedAt,
			"Clock":        clock,
			"Hanging":      hanging,
			"Failing":      failing,
			"LostAnswers":  lostAnswers,
			"LostAnswer":   lostAnswer,
			"Slow":         slow,
			"Slept":        slept,
			"Contention":   contention,
			"AwaitVacancy": awaitVacancy,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, s)
			})
		}
	})
	// These stop their server.
	t.Run("PausedServer", func(t *testing.T) {
		t.Parallel()
		pausedServer(t, suite{b, startServer(t, b)})
	})
	t.Run("RestartedServer", func(t *testing.T) {
		t.Parallel()
		restartedServer(t, suite{b, startServer(t, b)})
	})
}

type suite struct {
	Backend
	server *leaseserver.Server
}

func startServer(t *testing.T, b Backend) *leaseserver.Server {
	t.Helper()
	s, err := b.Start(t.Context(), leaseserver.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// leaser is a leaser with the further interface that the suite is about.
type leaser interface {
	litefs.Leaser
	litefs.Registry
}

// node makes a leaser; change may alter its options.
func (s suite) node(t *testing.T, name string, change ...func(*Options)) leaser {
	t.Helper()
	o := Options{
		URL: s.server.URL, Key: "test/" + t.Name(), TTL: s.TTL,
		Hostname: name, AdvertiseURL: "http://" + name + ":20202",
	}
	for _, f := range change {
		f(&o)
	}
	l, err := s.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	r, ok := l.(leaser)
	if !ok {
		t.Fatalf("%T is no Registry", l)
	}
	t.Cleanup(func() {
		// The server may be gone, or the lease lost.
		_ = r.Close()
	})
	return r
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func mustAcquire(t *testing.T, l leaser) litefs.FencedLease {
	t.Helper()
	lease, err := l.Acquire(timeout(t))
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return fenced(t, lease)
}

func fenced(t *testing.T, lease litefs.Lease) litefs.FencedLease {
	t.Helper()
	f, ok := lease.(litefs.FencedLease)
	if !ok {
		t.Fatalf("%T is no FencedLease", lease)
	}
	return f
}

// eventually acquires the lease as a candidate does.
func eventually(t *testing.T, l leaser) litefs.FencedLease {
	t.Helper()
	ctx := timeout(t)
	for {
		lease, err := await(ctx, l)
		if err == nil {
			return fenced(t, lease)
		}
		if ctx.Err() != nil {
			t.Fatalf("no lease within %v: %v", patience, err)
		}
	}
}

// await waits until the lease may be free and asks for it once.
func await(ctx context.Context, l leaser) (litefs.Lease, error) {
	err := l.AwaitVacant(ctx)
	var lease litefs.Lease
	if err == nil {
		lease, err = l.Acquire(ctx)
	}
	if err != nil {
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return lease, err
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// wantExpired checks everything that a lost lease says of itself.
func wantExpired(t *testing.T, l litefs.FencedLease) {
	t.Helper()
	ctx := timeout(t)
	wantErr(t, "SetRecord with a lost lease", l.SetRecord(ctx, litefs.Record{}), litefs.ErrLeaseExpired)
	wantErr(t, "Renew of a lost lease", l.Renew(ctx), litefs.ErrLeaseExpired)
	if d := l.Remaining(); d > 0 {
		t.Errorf("a lost lease has %v left", d)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close of a lost lease: %v", err)
	}
}

func oneHolder(t *testing.T, s suite) {
	ctx := timeout(t)
	a, b := s.node(t, "a"), s.node(t, "b")
	_, err := b.PrimaryURL(ctx)
	wantErr(t, "PrimaryURL before the first lease", err, litefs.ErrNoPrimary)

	lease := mustAcquire(t, a)
	if lease.Token() == 0 {
		t.Error("the token is 0")
	}
	if lease.TTL() != s.TTL {
		t.Errorf("TTL %v, want %v", lease.TTL(), s.TTL)
	}
	if d := lease.Remaining(); d > s.TTL {
		t.Errorf("%v left of a TTL of %v", d, s.TTL)
	}
	_, err = a.Acquire(ctx)
	wantErr(t, "Acquire by the holder", err, litefs.ErrPrimaryExists)
	_, err = b.Acquire(ctx)
	wantErr(t, "Acquire by another node", err, litefs.ErrPrimaryExists)
	for _, l := range []leaser{a, b} {
		if got, err := l.PrimaryURL(ctx); err != nil || got != a.AdvertiseURL() {
			t.Errorf("PrimaryURL: got %q, %v, want %q", got, err, a.AdvertiseURL())
		}
	}
}

func givenBack(t *testing.T, s suite) {
	ctx := timeout(t)
	a, b := s.node(t, "a"), s.node(t, "b")
	var last uint64
	for range 3 {
		for _, l := range []leaser{a, b} {
			// At once: a lease that was given back is not waited for.
			lease := mustAcquire(t, l)
			if lease.Token() <= last {
				t.Fatalf("token %d after %d", lease.Token(), last)
			}
			last = lease.Token()
			if err := lease.Renew(ctx); err != nil {
				t.Fatal(err)
			}
			if err := lease.Close(); err != nil {
				t.Fatal(err)
			}
			wantExpired(t, lease)
		}
	}
	_, err := b.PrimaryURL(ctx)
	wantErr(t, "PrimaryURL after the last lease", err, litefs.ErrNoPrimary)

	old := mustAcquire(t, a)
	if err := a.Close(); err != nil {
		t.Fatalf("Close of the leaser: %v", err)
	}
	lease := mustAcquire(t, b)
	wantExpired(t, old)
	if err := lease.Renew(ctx); err != nil {
		t.Errorf("a lost lease that was closed took its successor's: %v", err)
	}
}

func expired(t *testing.T, s suite) {
	a, b := s.node(t, "a"), s.node(t, "b")
	old := mustAcquire(t, a)
	from := time.Now()
	lease := eventually(t, b)
	if d := old.Remaining(); d > 0 {
		t.Errorf("another node has the lease while %v are left", d)
	}
	t.Logf("another node had the lease %v after the last renewal, at a TTL of %v", time.Since(from).Round(time.Millisecond), s.TTL)
	if lease.Token() <= old.Token() {
		t.Errorf("token %d after %d", lease.Token(), old.Token())
	}
	wantExpired(t, old)
	if got, err := a.PrimaryURL(timeout(t)); err != nil || got != b.AdvertiseURL() {
		t.Errorf("PrimaryURL: got %q, %v, want %q", got, err, b.AdvertiseURL())
	}
}

// restarted is a node whose process was killed and comes back: it takes its own lease over at once, and
// another node does not.
func restarted(t *testing.T, s suite) {
	ctx := timeout(t)
	var session string
	killed := s.node(t, "a", func(o *Options) { o.TTL = 60 * s.TTL; o.Remember = func(id string) { session = id } })
	old := mustAcquire(t, killed)
	again := s.node(t, "a", func(o *Options) { o.TTL = 60 * s.TTL; o.Former = session })
	other := s.node(t, "b", func(o *Options) { o.TTL = 60 * s.TTL })
	_, err := other.Acquire(ctx)
	wantErr(t, "Acquire by another node", err, litefs.ErrPrimaryExists)
	// There is no moment at which nobody has the lease.
	waiting, stop := context.WithCancel(ctx)
	vacant := make(chan error, 1)
	go func() { vacant <- other.AwaitVacant(waiting) }()
	defer func() {
		stop()
		if err := <-vacant; err == nil {
			t.Error("another node has seen the lease free while it was taken over")
		}
	}()
	if err := again.AwaitVacant(ctx); err != nil {
		t.Fatalf("AwaitVacant: %v", err)
	}
	lease := mustAcquire(t, again)
	if lease.Token() <= old.Token() {
		t.Errorf("token %d after %d", lease.Token(), old.Token())
	}
	wantErr(t, "Renew of the old one", old.Renew(ctx), litefs.ErrLeaseExpired)
	if err := lease.Renew(ctx); err != nil {
		t.Errorf("Renew: %v", err)
	}
	_, err = other.Acquire(ctx)
	wantErr(t, "Acquire by another node", err, litefs.ErrPrimaryExists)
	stop()

	// Its former one is not what stands there now.
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	mustAcquire(t, other)
	_, err = s.node(t, "a", func(o *Options) { o.Former = session }).Acquire(ctx)
	wantErr(t, "Acquire with an old memory", err, litefs.ErrPrimaryExists)
}

func renewed(t *testing.T, s suite) {
	a, b := s.node(t, "a"), s.node(t, "b")
	lease := mustAcquire(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), 3*s.TTL)
	defer cancel()
	vacant := make(chan error, 1)
	go func() { vacant <- b.AwaitVacant(ctx) }()
	for ctx.Err() == nil {
		err := lease.Renew(t.Context())
		if err != nil && lease.Remaining() > 0 {
			t.Errorf("Renew: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.TTL / 5):
		}
	}
	err := <-vacant
	if err == nil && lease.Remaining() > 0 {
		t.Error("the lease was free while it was being renewed")
	}
	if err != nil {
		wantErr(t, "AwaitVacant", err, context.DeadlineExceeded)
	}
}

func record(t *testing.T, s suite) {
	ctx := timeout(t)
	a, b := s.node(t, "a"), s.node(t, "b")
	_, err := b.Record(ctx)
	wantErr(t, "Record before the first", err, litefs.ErrNoRecord)

	old := mustAcquire(t, a)
	want := litefs.Record{
		NodeID: "aa", Hostname: "a", URL: a.AdvertiseURL(), ClusterID: "c", Epoch: 3,
		Position: litefs.Fullness{Epoch: 3, Txns: 1 << 60}, InSync: []string{"aa", "bb"}, Successor: "bb",
	}
	set := func(lease litefs.FencedLease) {
		t.Helper()
		if err := lease.SetRecord(ctx, want); err != nil {
			t.Fatal(err)
		}
		want.Token = lease.Token()
	}
	check := func(when string) {
		t.Helper()
		got, err := b.Record(ctx)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %+v, %v, want %+v", when, got, err, want)
		}
	}
	set(old)
	check("after the first")
	want.Epoch, want.InSync = 4, nil
	set(old)
	check("after the second")
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	check("after the lease")
	lease := mustAcquire(t, b)
	check("under the next lease")
	wantErr(t, "SetRecord after Close", old.SetRecord(ctx, litefs.Record{NodeID: "late"}), litefs.ErrLeaseExpired)
	check("after one that came late")
	want.NodeID = "bb"
	set(lease)
	check("after the next primary's first")
}

func setOnce(t *testing.T, s suite) {
	ctx := timeout(t)
	const nodes = 6
	var got [nodes]string
	var wg sync.WaitGroup
	for i := range nodes {
		l := s.node(t, fmt.Sprintf("n%d", i))
		wg.Go(func() {
			v, err := l.SetOnce(ctx, "secret", fmt.Appendf(nil, "value %d", i))
			if err != nil {
				t.Errorf("SetOnce: %v", err)
			}
			got[i] = string(v)
		})
	}
	wg.Wait()
	for _, v := range got {
		if v == "" || v != got[0] {
			t.Fatalf("nodes got different values: %q", got)
		}
	}
	l := s.node(t, "late")
	for name, want := range map[string]string{"secret": got[0], "cluster-id": "mine"} {
		if v, err := l.SetOnce(ctx, name, []byte("mine")); err != nil || string(v) != want {
			t.Errorf("SetOnce of %s: got %q, %v, want %q", name, v, err, want)
		}
	}
	long := make([]byte, litefs.MaxRegistryValue)
	if v, err := l.SetOnce(ctx, "long", long); err != nil || len(v) != len(long) {
		t.Errorf("SetOnce of %d bytes: got %d, %v", len(long), len(v), err)
	}
	for _, name := range []string{"", "record", "../x", "A"} {
		if _, err := l.SetOnce(ctx, name, []byte("x")); err == nil {
			t.Errorf("SetOnce takes the name %q", name)
		}
	}
	if _, err := l.SetOnce(ctx, "longer", append(long, 0)); err == nil {
		t.Error("SetOnce takes a value that is too long")
	}
}

func lostSession(t *testing.T, s suite) { lost(t, s, s.EndSession) }

func removedKey(t *testing.T, s suite) { lost(t, s, s.RemoveKey) }

// lost is a lease that is taken from its holder at the server.
func lost(t *testing.T, s suite, end func(ctx context.Context, url, key string) error) {
	ctx := timeout(t)
	a, b := s.node(t, "a"), s.node(t, "b")
	old := mustAcquire(t, a)
	if err := end(ctx, s.server.URL, "test/"+t.Name()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "SetRecord", old.SetRecord(ctx, litefs.Record{}), litefs.ErrLeaseExpired)
	wantErr(t, "Renew", old.Renew(ctx), litefs.ErrLeaseExpired)
	wantExpired(t, old)
	_, err := b.PrimaryURL(ctx)
	wantErr(t, "PrimaryURL", err, litefs.ErrNoPrimary)
	if lease := eventually(t, b); lease.Token() <= old.Token() {
		t.Errorf("token %d after %d", lease.Token(), old.Token())
	}
	// The loser can be a candidate again.
	_, err = a.Acquire(ctx)
	wantErr(t, "Acquire", err, litefs.ErrPrimaryExists)
}

// contention has nodes that take the lease from each other, some by letting it expire: none may have
// it while another one still counts on it, and every token is greater than the one before.
func contention(t *testing.T, s suite) {
	const rounds = 8
	ctx := timeout(t)
	var (
		mu     sync.Mutex
		holder litefs.FencedLease
		taken  int
		wg     sync.WaitGroup
	)
	for i := range 4 {
		l := s.node(t, fmt.Sprintf("n%d", i), func(o *Options) { o.TTL = max(s.TTL/2, time.Second) })
		wg.Go(func() {
			for ctx.Err() == nil {
				got, err := await(ctx, l)
				if err != nil {
					continue
				}
				lease := fenced(t, got)
				mu.Lock()
				if holder != nil {
					if d := holder.Remaining(); d > 0 {
						t.Errorf("a second holder while the first has %v left", d)
					}
					if lease.Token() <= holder.Token() {
						t.Errorf("token %d after %d", lease.Token(), holder.Token())
					}
				}
				holder = lease
				taken++
				turn := taken
				mu.Unlock()
				// Every fourth is left to expire, by a node that then takes no part.
				if turn >= rounds || turn%4 == 0 {
					return
				}
				if err := lease.Renew(ctx); err != nil && lease.Remaining() > 0 {
					t.Errorf("Renew: %v", err)
				}
				if err := lease.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
		})
		if i == 0 {
			// The first one has had a turn before the others come.
			waitFor(t, ctx, func() bool { mu.Lock(); defer mu.Unlock(); return taken > 0 })
		}
	}
	wg.Wait()
	if taken < rounds {
		t.Errorf("the lease was taken %d times in %v, want %d", taken, patience, rounds)
	}
}

func waitFor(t *testing.T, ctx context.Context, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("waited too long")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// awaitVacancy looks at how soon a candidate hears that the lease is free; the time is logged.
func awaitVacancy(t *testing.T, s suite) {
	ctx := timeout(t)
	a, b := s.node(t, "a"), s.node(t, "b")
	if err := b.AwaitVacant(ctx); err != nil {
		t.Fatalf("AwaitVacant without a holder: %v", err)
	}
	for range 3 {
		lease := mustAcquire(t, a)
		var at atomic.Int64
		vacant := make(chan error, 1)
		go func() {
			err := b.AwaitVacant(ctx)
			at.Store(time.Now().UnixNano())
			vacant <- err
		}()
		if err := lease.SetRecord(ctx, litefs.Record{Successor: "b"}); err != nil {
			t.Fatal(err)
		}
		from := time.Now()
		if err := lease.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-vacant; err != nil {
			t.Fatalf("AwaitVacant: %v", err)
		}
		t.Logf("a candidate heard of a free lease %v after its holder began to give it back", time.Unix(0, at.Load()).Sub(from).Round(time.Microsecond))
	}
}
