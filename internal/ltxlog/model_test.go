package ltxlog

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/superfly/ltx"
)

// model is a database in memory that produces entries and knows what each should leave behind.
type model struct {
	pageSize uint32
	txid     uint64
	epoch    uint64
	pages    [][]byte // page i+1
	rnd      *rand.Rand
	history  map[state][]byte  // content by position
	current  map[uint64]uint64 // checksum by TXID, of the history in force
}

// state is a position: the rolling checksum alone is no key, because it is linear (two pages that
// swap their content leave it as it was).
type state struct{ txid, sum uint64 }

func newModel(seed uint64, pageSize uint32) *model {
	return &model{pageSize: pageSize, epoch: 1, rnd: rand.New(rand.NewPCG(seed, 1)), history: map[state][]byte{}, current: map[uint64]uint64{}}
}

// sum is the rolling checksum, computed the long way with the library's function.
func (m *model) sum() uint64 {
	sum := ltx.ChecksumFlag
	for i, p := range m.pages {
		if pgno := uint32(i + 1); pgno != ltx.LockPgno(m.pageSize) {
			sum = ltx.ChecksumFlag | (sum ^ ltx.ChecksumPage(pgno, p))
		}
	}
	return uint64(sum)
}

func (m *model) content() []byte { return bytes.Join(m.pages, nil) }

// change is one entry ready to be appended.
type change struct {
	h     Header
	pages map[uint32][]byte
	post  uint64
}

func (c change) emit(emit func(uint32, []byte) error) error {
	for _, pgno := range slices.Sorted(maps.Keys(c.pages)) {
		if err := emit(pgno, c.pages[pgno]); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) header(txs uint64) Header {
	h := Header{Min: m.txid + 1, Max: m.txid + txs, Pre: m.sum(), PageSize: m.pageSize, Epoch: m.epoch,
		Timestamp: time.UnixMilli(int64(1e12 + m.txid*1000)), WALOffset: int64(32 + m.txid), WALSize: 4120, Salt1: 7, Salt2: uint32(m.txid)}
	if h.Min == 1 {
		h.Pre = 0
	}
	return h
}

// next makes a random entry: it writes, grows (sometimes without writing the new pages) or shrinks.
func (m *model) next() change {
	c := change{h: m.header(1 + uint64(m.rnd.IntN(3))), pages: map[uint32][]byte{}}
	count := len(m.pages)
	switch m.rnd.IntN(6) {
	case 0:
		count += 1 + m.rnd.IntN(10)
	case 1:
		count = 1 + m.rnd.IntN(count+1)
	}
	count = max(count, 1)
	m.resize(count)
	if m.txid == 0 {
		for pgno := range count {
			c.pages[uint32(pgno+1)] = m.write(uint32(pgno + 1))
		}
	}
	for range 1 + m.rnd.IntN(5) {
		pgno := uint32(1 + m.rnd.IntN(count))
		c.pages[pgno] = m.write(pgno)
	}
	return m.finish(c)
}

func (m *model) resize(count int) {
	for len(m.pages) < count {
		m.pages = append(m.pages, make([]byte, m.pageSize))
	}
	m.pages = m.pages[:count]
}

func (m *model) finish(c change) change {
	m.txid = c.h.Max
	c.h.Commit = uint32(len(m.pages))
	c.post = m.sum()
	m.history[state{m.txid, c.post}] = m.content()
	m.current[m.txid] = c.post
	return c
}

// snapshot makes an entry with Min 1 that carries everything up to the current transaction.
func (m *model) snapshot() change {
	c := change{h: m.header(0), pages: map[uint32][]byte{}}
	c.h.Min, c.h.Pre, c.h.Max = 1, 0, max(m.txid, 1)
	for i, p := range m.pages {
		c.pages[uint32(i+1)] = p
	}
	return m.finish(c)
}

// write fills a page with noise, a pattern or zeros.
func (m *model) write(pgno uint32) []byte {
	p := make([]byte, m.pageSize)
	switch m.rnd.IntN(3) {
	case 0:
		for i := range p {
			p[i] = byte(m.rnd.Uint32())
		}
	case 1:
		copy(p, bytes.Repeat([]byte{byte(m.rnd.Uint32()), byte(pgno), 3}, len(p)/3))
	}
	m.pages[pgno-1] = p
	return p
}

func (m *model) append(t testing.TB, l *Log, sync bool) Entry {
	t.Helper()
	c := m.next()
	e, err := l.Append(c.h, c.emit, c.post, sync)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// memory is an io.WriterAt.
type memory struct{ b []byte }

func (w *memory) WriteAt(b []byte, off int64) (int, error) {
	if need := int(off) + len(b); need > len(w.b) {
		w.b = append(w.b, make([]byte, need-len(w.b))...)
	}
	return copy(w.b[off:], b), nil
}

// checkReplay compares the database rebuilt from the log with the model as of txid.
func (m *model) checkReplay(t testing.TB, l *Log, txid uint64) {
	t.Helper()
	var w memory
	pages, sum, err := l.Replay(&w, txid)
	if err != nil {
		t.Fatal(err)
	}
	want, ok := m.history[state{txid, sum}]
	if got := w.b[:int64(pages)*int64(m.pageSize)]; !ok || !bytes.Equal(got, want) {
		t.Fatalf("replay to %d differs from the model", txid)
	}
}

// checkChain verifies the list and every file in it.
func checkChain(t testing.TB, l *Log) {
	t.Helper()
	entries := l.Entries()
	for i, e := range entries {
		if i > 0 && (e.Min != entries[i-1].Max+1 || e.Pre != entries[i-1].Post) {
			t.Fatalf("%s does not join %s", entryName(e.Min, e.Max), entryName(entries[i-1].Min, entries[i-1].Max))
		}
		if err := l.Verify(e); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t testing.TB, dir string, opt Options) *Log {
	t.Helper()
	l, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func read(t testing.TB, l *Log, e Entry) []byte {
	t.Helper()
	b, err := l.readEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
