// Package restore makes a database file out of an archive: of litefs's, or of Litestream's.
//
//	h, err := restore.Open(ctx, store, layout, "app.db", 0)    // the newest history of app.db
//	m, err := h.At(ctx, time)                                 // or Newest, AtTXID, Moment
//	plan, err := h.Plan(m)
//	got, err := h.Restore(ctx, m, "/srv/app.db", progress)
//
// A file comes to its name only when every byte is right: each object has a checksum, and at the end
// the pages have the checksum that the primary's database had.
package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/catalog"
	"github.com/litefs/litefs/internal/objstore"
)

var (
	// ErrNoHistory: the archive has nothing of the database.
	ErrNoHistory = errors.New("no history in the archive")
	// ErrNoMoment: the history has no such moment. The text offers those that it has.
	ErrNoMoment = errors.New("no such moment in the archive")
)

// History is a history of a database, as it was when it was opened.
type History struct {
	Database string
	Number   uint64 // 0: of another program, which has one only
	Folder   string // in the store, with a slash at its end, or ""
	Objects  []archive.Object
	Last     archive.Header // of the newest moment
	Dropped  time.Time      // when the database was; zero: it was not, as far as the archive knows

	store   objstore.Store
	layout  archive.Layout
	headers map[uint64]archive.Header // by moment
}

// Moment is a state that can be restored.
type Moment struct {
	N uint64
	archive.Header
}

func (m Moment) String() string {
	s := fmt.Sprintf("moment %d of %s", m.N, m.Time.Format(time.RFC3339Nano))
	if m.State.Known() {
		s += fmt.Sprintf(" (transaction %016x)", m.State.TXID)
	}
	return s
}

// Open opens a history of a database: the n-th, or with 0 the one whose newest moment was written under
// the highest epoch.
func Open(ctx context.Context, s objstore.Store, layout archive.Layout, database string, n uint64) (*History, error) {
	numbers, err := catalog.Histories(ctx, s, database)
	if err != nil {
		return nil, err
	}
	if n != 0 && !slices.Contains(numbers, n) {
		return nil, fmt.Errorf("%w: %s has no history %d in %s; litefs history lists them", ErrNoHistory, database, n, s)
	}
	var best *History
	for _, number := range numbers {
		if n != 0 && number != n {
			continue
		}
		h, err := open(ctx, &History{Database: database, Number: number, Folder: catalog.Folder(database, number), store: s, layout: layout})
		if errors.Is(err, ErrNoHistory) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if best == nil || h.Last.State.Epoch >= best.Last.State.Epoch {
			best = h
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: there is nothing of %s in %s", ErrNoHistory, database, s)
	}
	return best, nil
}

// OpenForeign opens what another program wrote right at the root of the store; ErrNoHistory when there
// is nothing.
func OpenForeign(ctx context.Context, s objstore.Store, layout archive.Layout) (*History, error) {
	return open(ctx, &History{store: s, layout: layout})
}

func open(ctx context.Context, h *History) (*History, error) {
	var err error
	if h.Folder == "" {
		for level := range archive.LevelSnapshot + 1 {
			// Not of all levels at once: at the root there may be anything.
			found, err := catalog.Objects(ctx, h.store, h.layout, "", h.layout.Prefix(level))
			if err != nil {
				return nil, err
			}
			h.Objects = append(h.Objects, found...)
		}
	} else if h.Objects, err = catalog.Objects(ctx, h.store, h.layout, h.Folder, ""); err != nil {
		return nil, err
	}
	moments := archive.Moments(h.Objects)
	if len(moments) == 0 {
		return nil, fmt.Errorf("%w: %s%s holds no object with every page", ErrNoHistory, h.store, strings.TrimSuffix("/"+h.Folder, "/"))
	}
	h.headers = map[uint64]archive.Header{}
	last, err := h.header(ctx, moments[len(moments)-1])
	if err != nil {
		return nil, err
	}
	h.Last = last
	if h.Ours() {
		drop, ok, err := catalog.Dropped(ctx, h.store, h.Folder)
		if err != nil {
			return nil, err
		}
		if ok && drop.TXID >= last.State.TXID {
			h.Dropped = drop.Time
		}
	}
	return h, nil
}

// Ours says whether litefs wrote the history: then its moments have transactions and checksums.
func (h *History) Ours() bool { return h.Number > 0 }

// Moments returns the moments that can be restored, ascending.
func (h *History) Moments() []uint64 { return archive.Moments(h.Objects) }

// header reads what is known of a moment, from the smallest object that ends with it.
func (h *History) header(ctx context.Context, n uint64) (archive.Header, error) {
	if have, ok := h.headers[n]; ok {
		return have, nil
	}
	var from []archive.Object
	for _, o := range h.Objects {
		if o.Max == n {
			from = append(from, o)
		}
	}
	slices.SortFunc(from, func(a, b archive.Object) int { return int(b.Min) - int(a.Min) })
	var errs []error
	for _, o := range from {
		got, err := catalog.Header(ctx, h.store, h.layout, h.Folder, o, h.Ours())
		if err == nil {
			h.headers[n] = got
			return got, nil
		}
		errs = append(errs, err)
	}
	return archive.Header{}, errors.Join(errs...)
}

// Moment returns the n-th moment. One that ends with a transaction whose commit was refused (docs/promises.md) is none:
// the moment after it takes it back.
func (h *History) Moment(ctx context.Context, n uint64) (Moment, error) {
	m, err := h.moment(ctx, n)
	if err != nil || !h.Ours() || !slices.Contains(h.Moments(), n+1) {
		return m, err
	}
	next, err := h.moment(ctx, n+1)
	if err == nil && next.State.Count == 0 {
		err = fmt.Errorf("%w: the commit of transaction %016x was refused, and %s takes it back", ErrNoMoment, m.State.TXID, next)
	}
	return m, err
}

func (h *History) moment(ctx context.Context, n uint64) (Moment, error) {
	moments := h.Moments()
	i, ok := slices.BinarySearch(moments, n)
	if !ok {
		return Moment{}, fmt.Errorf("%w: %d; near it are %s", ErrNoMoment, n, near(moments, i))
	}
	got, err := h.header(ctx, n)
	if errors.Is(err, archive.ErrCorrupt) || errors.Is(err, objstore.ErrNotFound) {
		i := slices.IndexFunc(h.Objects, func(o archive.Object) bool { return o.Max == n })
		err = &DamagedError{Object: h.Objects[i], Key: h.Key(h.Objects[i]), Err: err, Next: h.before(ctx, h.Objects, n)}
	}
	return Moment{n, got}, err
}

// near names the moments around index i.
func near(moments []uint64, i int) string {
	var names []string
	if i > 0 {
		names = append(names, fmt.Sprint(moments[i-1]))
	}
	if i < len(moments) {
		names = append(names, fmt.Sprint(moments[i]))
	}
	return strings.Join(names, " and ")
}

// Newest returns the last moment.
func (h *History) Newest(ctx context.Context) (Moment, error) {
	moments := h.Moments()
	return h.moment(ctx, moments[len(moments)-1])
}

// search returns the first moment for which ok holds; ok must hold for all after it. It reads as many
// headers as a binary search does.
func (h *History) search(ctx context.Context, ok func(archive.Header) bool) (moments []uint64, i int, err error) {
	moments = h.Moments()
	i = sort.Search(len(moments), func(i int) bool {
		got, herr := h.header(ctx, moments[i])
		if herr != nil {
			err = errors.Join(err, herr)
			return false
		}
		return ok(got)
	})
	return moments, i, err
}

// At returns the last moment whose transactions had all ended at t.
func (h *History) At(ctx context.Context, t time.Time) (Moment, error) {
	moments, i, err := h.search(ctx, func(got archive.Header) bool { return got.Time.After(t) })
	if err != nil {
		return Moment{}, err
	}
	if i == 0 {
		first, err := h.moment(ctx, moments[0])
		return Moment{}, errors.Join(fmt.Errorf("%w: nothing is as old as %s; the oldest is %s", ErrNoMoment, t.Format(time.RFC3339Nano), first), err)
	}
	return h.moment(ctx, moments[i-1])
}

// AtTXID returns the moment at which a transaction was the last one. Transactions of about the same time
// share a moment: for one inside, the error offers the moments around it.
func (h *History) AtTXID(ctx context.Context, txid uint64) (Moment, error) {
	of := func(got archive.Header) uint64 {
		if h.Ours() {
			return got.State.TXID
		}
		return got.Max
	}
	moments, i, err := h.search(ctx, func(got archive.Header) bool { return of(got) >= txid })
	if err != nil {
		return Moment{}, err
	}
	var around []string
	if i < len(moments) {
		m, err := h.Moment(ctx, moments[i])
		if err != nil || of(m.Header) == txid {
			return m, err
		}
		around = append(around, m.String())
	}
	if i > 0 {
		m, err := h.moment(ctx, moments[i-1])
		if err != nil {
			return Moment{}, err
		}
		around = append(around, m.String())
	}
	slices.Reverse(around)
	return Moment{}, fmt.Errorf("%w: none ends with transaction %016x; near it are %s", ErrNoMoment, txid, strings.Join(around, " and "))
}

// Plan returns the objects that a moment is made of.
func (h *History) Plan(m Moment) ([]archive.Object, error) { return archive.Plan(h.Objects, m.N) }

// Key is an object's key in the store.
func (h *History) Key(o archive.Object) string { return h.Folder + h.layout.Key(o) }
