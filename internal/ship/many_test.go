package ship

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
)

// memory is a store without a disk.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	times   map[string]time.Time
}

func (m *memory) String() string { return "memory" }

func (m *memory) PutIfAbsent(_ context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects[key] != nil {
		return "", objstore.ErrExists
	}
	m.objects[key], m.times[key] = b, a.Time
	return "", nil
}

func (m *memory) PutIfMatch(context.Context, string, string, io.ReadSeeker, objstore.Attrs) (string, error) {
	return "", errors.New("nobody asks for it")
}

func (m *memory) Get(_ context.Context, key string, r objstore.Range) (*objstore.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[key]
	if !ok {
		return nil, objstore.ErrNotFound
	}
	part := b[min(r.Off, int64(len(b))):]
	if r.Len > 0 {
		part = part[:min(r.Len, int64(len(part)))]
	}
	return &objstore.Object{Info: objstore.Info{Key: key, Size: int64(len(b))}, Body: io.NopCloser(bytes.NewReader(part))}, nil
}

func (m *memory) List(_ context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []objstore.Info
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(key, prefix) && key > after {
			all = append(all, objstore.Info{Key: key, Size: int64(len(m.objects[key])), Modified: m.times[key]})
		}
	}
	return func(yield func(objstore.Info, error) bool) {
		for _, info := range all {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (m *memory) Folders(_ context.Context, prefix string) (names []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.objects {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			if name, _, ok := strings.Cut(rest, "/"); ok {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (m *memory) Delete(ctx context.Context, key string) error {
	return m.DeleteAll(ctx, []string{key})
}

func (m *memory) DeleteAll(_ context.Context, keys []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		delete(m.objects, key)
	}
	return nil
}

// oneOfMany is a model database for several goroutines, with a name of its own and times of now.
type oneOfMany struct {
	mu    sync.Mutex
	node  modelNode
	name  string
	times map[uint64]time.Time // of transactions
}

func (d *oneOfMany) write() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.node.write()
	d.times[d.node.head.txid] = time.Now()
}

func (d *oneOfMany) ID() uint32   { return d.node.id }
func (d *oneOfMany) Name() string { return d.name }
func (d *oneOfMany) Pos() litefs.Pos {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.node.Pos()
}

func (d *oneOfMany) LogAfter(txid uint64) ([]litefs.LogPart, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	parts, err := d.node.LogAfter(txid)
	for i := range parts {
		parts[i].Size, parts[i].Time = 100, d.times[parts[i].Max]
	}
	return parts, err
}

func (d *oneOfMany) LogBytes(txid uint64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.node.LogBytes(txid)
}

func (d *oneOfMany) LogPages(p litefs.LogPart, fn func(pgno uint32, data []byte) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.node.LogPages(p, fn)
}

func (d *oneOfMany) Descends(pos litefs.Pos, epoch uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.node.Descends(pos, epoch)
}

func (d *oneOfMany) DecidedSnapshot(context.Context) (*litefs.LTXReader, error) {
	return nil, litefs.ErrDatabaseNotFound // no day passes
}

type manyDBs []*oneOfMany

func (n manyDBs) IsPrimary() bool { return true }
func (n manyDBs) Epoch() uint64   { return 1 }
func (n manyDBs) Databases() (dbs []Database) {
	for _, d := range n {
		dbs = append(dbs, d)
	}
	return dbs
}

// TestThousandDatabases: 1,000 databases with one write a minute each cost the node five requests a second, objects put
// together and a new primary's looking for its histories included, and none waits for longer than some minutes.
func TestThousandDatabases(t *testing.T) {
	const count, minutes = 1000, 10
	synctest.Test(t, func(t *testing.T) {
		var n manyDBs
		for i := range count {
			r := rand.New(rand.NewPCG(uint64(i), 5))
			n = append(n, &oneOfMany{
				name: fmt.Sprintf("%04d.db", i), times: map[uint64]time.Time{},
				node: modelNode{r: r, id: uint32(i + 1), primary: true, epoch: 1, states: map[place]*state{}},
			})
		}
		store := &memory{objects: map[string][]byte{}, times: map[string]time.Time{}}
		for run := range 2 { // the second one finds the archive of the first
			s, err := New(Options{Source: n, Targets: []Target{{Store: store, Layout: archive.LayoutBucket}}, Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			var lag time.Duration
			began := time.Now()
			for second := range minutes * 60 {
				for i := second % 60; i < count; i += 60 {
					n[i].write()
				}
				time.Sleep(time.Second)
				lag = max(lag, s.Status()[0].Lag)
			}
			st := s.Status()[0]
			rate := float64(st.Requests) / time.Since(began).Seconds()
			t.Logf("run %d: %.2f requests a second, %d of %d are puts; the longest wait was %v", run, rate, st.Puts, st.Requests, lag)
			// A burst of two seconds' requests, and those that wait.
			if burst := (10 + workers) / time.Since(began).Seconds(); rate > 5+burst || cmp.Or(st.Err, "") != "" {
				t.Errorf("%.2f requests a second, error %q", rate, st.Err)
			}
			if lag > 15*time.Minute {
				t.Errorf("a database has waited for %v", lag)
			}
			s.Close()
		}
	})
}
