package restore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/restore"
)

const (
	pageSize = 1024
	folder   = "app.db/history-00000001/"
)

// made is an archive whose states are known.
type made struct {
	t      *testing.T
	dir    string
	store  *objstore.Dir
	states [][][]byte // by moment
}

func at(moment uint64) time.Time {
	return time.UnixMilli(1_700_000_000_000).Add(time.Duration(moment) * time.Second)
}

// newArchive writes ten moments: raw 1 to 10, a snapshot of 4, runs of 1-5 and 6-8.
func newArchive(t *testing.T) *made {
	dir := t.TempDir()
	store, err := objstore.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := &made{t: t, dir: dir, store: store, states: [][][]byte{nil}}
	r := rand.New(rand.NewPCG(1, 2))
	var database [][]byte
	raw := map[uint64][]byte{}
	for n := uint64(1); n <= 10; n++ {
		database = slices.Clone(database)
		have, changed := len(database), map[uint32][]byte{}
		commit := 20 + r.IntN(30)
		for len(database) < commit {
			database = append(database, make([]byte, pageSize))
		}
		database = database[:commit]
		for range 5 {
			i := r.IntN(commit)
			database[i] = []byte(fmt.Sprintf("%-*d", pageSize, r.Uint64()))
			changed[uint32(i+1)] = database[i]
		}
		m.states = append(m.states, database)
		raw[n] = m.put(0, n, n, uint32(have), changed)
	}
	all := map[uint32][]byte{}
	for i, p := range m.states[4] {
		all[uint32(i+1)] = p
	}
	m.put(9, 1, 4, 0, all)
	for _, run := range [][2]uint64{{1, 5}, {6, 8}} {
		var parts []io.Reader
		for n := run[0]; n <= run[1]; n++ {
			parts = append(parts, bytes.NewReader(raw[n]))
		}
		var b bytes.Buffer
		if _, _, err := archive.Merge(&b, parts); err != nil {
			t.Fatal(err)
		}
		m.keep(1, run[0], run[1], b.Bytes())
	}
	return m
}

func (m *made) header(first, last uint64) archive.Header {
	sum := uint64(1) << 63
	for i, p := range m.states[last] {
		sum ^= pagesum.Page(uint32(i+1), p) &^ (1 << 63)
	}
	return archive.Header{
		Min: first, Max: last, PageSize: pageSize, Commit: uint32(len(m.states[last])), Time: at(last),
		State: archive.State{TXID: 10 * last, Count: 10, DB: 7, Sum: sum, Epoch: 1},
	}
}

func (m *made) put(level int, first, last uint64, have uint32, pages map[uint32][]byte) []byte {
	m.t.Helper()
	var b bytes.Buffer
	w, err := archive.NewWriter(&b, m.header(first, last), have)
	if err != nil {
		m.t.Fatal(err)
	}
	for pgno := uint32(1); pgno <= uint32(len(m.states[last])); pgno++ {
		if data := pages[pgno]; data != nil {
			if err := w.Page(pgno, data); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	if _, err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.keep(level, first, last, b.Bytes())
	return b.Bytes()
}

func (m *made) keep(level int, first, last uint64, b []byte) {
	m.t.Helper()
	o := archive.Object{Level: level, Min: first, Max: last}
	if _, err := m.store.PutIfAbsent(m.t.Context(), folder+archive.LayoutDir.Key(o), bytes.NewReader(b), objstore.Attrs{Time: at(last)}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *made) open() *restore.History {
	m.t.Helper()
	h, err := restore.Open(m.t.Context(), m.store, archive.LayoutDir, "app.db", 0)
	if err != nil {
		m.t.Fatal(err)
	}
	return h
}

// restored restores a moment and compares it.
func (m *made) restored(h *restore.History, n uint64) (restore.Result, error) {
	m.t.Helper()
	moment, err := h.Moment(m.t.Context(), n)
	if err != nil {
		return restore.Result{}, err
	}
	dir := m.t.TempDir()
	file := filepath.Join(dir, "app.db")
	got, err := h.Restore(m.t.Context(), moment, file, nil)
	if err != nil {
		if entries, derr := os.ReadDir(dir); derr != nil || len(entries) != 0 {
			m.t.Errorf("a restore that fails leaves %v, %v", entries, derr)
		}
		return got, err
	}
	b, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(b, bytes.Join(m.states[n], nil)) {
		m.t.Errorf("moment %d: other bytes, %v", n, err)
	}
	return got, nil
}

func TestMoments(t *testing.T) {
	m := newArchive(t)
	h := m.open()
	for n := uint64(1); n <= 10; n++ {
		if _, err := m.restored(h, n); err != nil {
			t.Errorf("moment %d: %v", n, err)
		}
		for _, find := range []func() (restore.Moment, error){
			func() (restore.Moment, error) { return h.At(t.Context(), at(n)) },
			func() (restore.Moment, error) { return h.At(t.Context(), at(n).Add(999*time.Millisecond)) },
			func() (restore.Moment, error) { return h.AtTXID(t.Context(), 10*n) },
		} {
			if got, err := find(); err != nil || got.N != n {
				t.Errorf("moment %d: found %v, %v", n, got, err)
			}
		}
	}
	for _, tt := range []struct {
		find func() (restore.Moment, error)
		want string
	}{
		{func() (restore.Moment, error) { return h.At(t.Context(), at(0)) }, "the oldest is moment 1 "},
		{func() (restore.Moment, error) { return h.AtTXID(t.Context(), 33) }, "near it are moment 3 of 2023-11-14T22:13:23Z (transaction 000000000000001e) and moment 4 "},
		{func() (restore.Moment, error) { return h.AtTXID(t.Context(), 101) }, "near it are moment 10 "},
		{func() (restore.Moment, error) { return h.Moment(t.Context(), 11) }, "near it are 10"},
	} {
		if _, err := tt.find(); !errors.Is(err, restore.ErrNoMoment) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// TestDamage: every object of the archive is damaged, cut and removed in turn. Every moment is restored as
// it was, by other objects where there are some; else the object is named, and the moment that is offered
// instead can be had.
func TestDamage(t *testing.T) {
	for _, damage := range []string{"bit", "cut", "gone"} {
		m := newArchive(t)
		before := m.open() // listed before the damage: an object that is gone is missed
		for _, o := range before.Objects {
			name := filepath.Join(m.dir, folder, archive.LayoutDir.Key(o))
			whole, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			broken := slices.Clone(whole)
			broken[len(broken)/2] ^= 4
			switch damage {
			case "cut":
				err = os.WriteFile(name, whole[:len(whole)*2/3], 0o600)
			case "gone":
				err = os.Remove(name)
			default:
				err = os.WriteFile(name, broken, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			for n := uint64(1); n <= 10; n++ {
				_, err := m.restored(before, n)
				var named *restore.DamagedError
				switch {
				case err == nil:
				case !errors.As(err, &named) || named.Object != o:
					t.Errorf("%s %s, moment %d: %v", damage, o, n, err)
				case named.Next == nil && n > 1 && o.Min > 1:
					t.Errorf("%s %s, moment %d: nothing is offered", damage, o, n)
				case named.Next != nil:
					if _, err := m.restored(before, named.Next.N); err != nil || named.Next.N >= n {
						t.Errorf("%s %s, moment %d: %s is offered: %v", damage, o, n, named.Next, err)
					}
				}
			}
			if err := os.WriteFile(name, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOtherHistory: an object of another history that got into this one does not go unseen.
func TestOtherHistory(t *testing.T) {
	m := newArchive(t)
	o := archive.Object{Level: 0, Min: 10, Max: 10}
	name := filepath.Join(m.dir, folder, archive.LayoutDir.Key(o))
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	m.put(0, 10, 10, uint32(len(m.states[9])), map[uint32][]byte{1: make([]byte, pageSize)})
	if _, err := m.restored(m.open(), 10); !errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
	if _, err := m.restored(m.open(), 9); err != nil {
		t.Error(err)
	}
}

func TestFileInTheWay(t *testing.T) {
	m := newArchive(t)
	h := m.open()
	moment, err := h.Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-journal"} {
		file := filepath.Join(t.TempDir(), "app.db")
		if err := os.WriteFile(file+suffix, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Restore(t.Context(), moment, file, nil); err == nil || !strings.Contains(err.Error(), file+suffix) {
			t.Errorf("%s in the way: %v", suffix, err)
		}
		if b, err := os.ReadFile(file + suffix); err != nil || string(b) != "mine" {
			t.Errorf("%s is another: %v", suffix, err)
		}
	}
}
