package ltxlog

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/superfly/ltx"
)

// Open opens the log in dir, which is created when it does not exist.
//
// Entries that a power cut left in the recent file alone are written out; a read-only log does
// without them. Temporary files are removed, and entries covered by a larger one (a compaction or a snapshot
// that was interrupted). The headers of all entries are read and must form a chain; the last
// entry and all that were not known to be durable are verified completely. A torn last entry is
// removed, and so is everything from a fault on that lies behind the durable position, which is
// what a power cut leaves: Dropped tells. Any other fault is a BrokenError, and nothing is removed
// for it unless Options.Repair asks. An error of the disk is returned and removes nothing.
func Open(dir string, opt Options) (*Log, error) {
	opt.ensureDefaults()
	l := &Log{dir: dir, fs: opt.FS, logger: opt.Logger, buffers: opt.Buffers,
		spill: opt.spillSize, form: newForm(opt.Sealing), recent: opt.Recent, id: opt.ID, readOnly: opt.ReadOnly, packs: opt.Packs, maxPack: opt.packSize}
	if err := l.recover(opt.Repair); err != nil {
		err = fmt.Errorf("open transaction log %s: %w", dir, err)
		if l.mark.file != nil {
			err = errors.Join(err, l.mark.file.Close())
		}
		return nil, err
	}
	for _, d := range l.dropped {
		l.logger.Warn("transaction log entry dropped",
			"path", l.path(entryName(d.Min, d.Max)), "durable", d.Durable, "err", d.Err)
	}
	return l, nil
}

// candidate is a file named as an entry.
type candidate struct {
	Entry       // only Min and Max when bad
	place       // none: the file is its own
	bad   error // header, trailer or size cannot be those of the entry
}

func (l *Log) recover(repair bool) error {
	if !l.readOnly {
		if err := l.fs.MkdirAll(l.dir, 0o700); err != nil {
			return err
		}
	}
	l.names.Store(true) // the last run may not have come to it
	packs, found, err := l.scan()
	for range 10 {
		// Beside a running node a file may go between being listed and being read.
		if !l.readOnly || !errors.Is(err, fs.ErrNotExist) {
			break
		}
		packs, found, err = l.scan()
	}
	if err != nil {
		return err
	}
	was, err := readMark(l.fs, l.path(durableName))
	if err != nil {
		return err
	}
	mark := was.txid
	l.mark.forgotten, l.mark.seq, l.mark.safe = was.forgotten, was.seq, was.place
	if l.recent != nil {
		l.recent.atLeast(was.forgotten) // or its copies would not count
	}
	if l.change.copies.unpacked {
		if found, err = l.restore(packs, found, mark); err != nil {
			return err
		}
	}
	chain, covered, err := l.resolveOverlaps(found, mark)
	if err != nil {
		return err
	}
	if chain, err = l.cutFaults(chain, mark, repair); err != nil {
		return err
	}
	if err := l.checkMark(chain, mark, repair); err != nil {
		return err
	}
	for _, c := range chain {
		l.list(c.Entry, c.place)
	}
	l.mu.synced, l.mu.durable = mark, mark
	if l.readOnly {
		return nil
	}
	if err := l.cleanUp(covered, packs); err != nil {
		return err
	}
	l.dropAgain()
	return nil
}

// dropAgain has the first change make durable what the last run may have dropped without coming to its end: what it has
// removed, and has cut from the newest pack, is not here, but would come back after a power cut.
func (l *Log) dropAgain() {
	l.change.dropped = true
	if head, ok := l.Head(); ok {
		if p := l.placeOf(head).pack; p != nil {
			l.change.cut = place{pack: p, at: p.size}
		}
	}
}

// scan removes temporary files and reads the ends of every entry, in the order of Min; of several
// with one Min the largest comes first.
func (l *Log) scan() (packs []*pack, found []candidate, err error) {
	files, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		minTXID, maxTXID, isEntry := parseEntryName(f.Name())
		first, isPack := parsePackName(f.Name())
		switch {
		case isEntry:
			c, err := l.readEnds(minTXID, maxTXID)
			if err != nil {
				return nil, nil, err
			}
			found = append(found, c)
		case isPack:
			p, in, err := l.scanPack(f.Name(), first)
			if err != nil {
				return nil, nil, err
			}
			packs, found = append(packs, p), append(found, in...)
		case isTempName(f.Name()):
			if l.readOnly {
				continue
			}
			if err := l.remove(f.Name()); err != nil {
				return nil, nil, err
			}
		case f.Name() == recentName:
			l.change.copies.unpacked = !l.readOnly
		case f.Name() != durableName:
			l.logger.Warn("foreign file in transaction log, left alone", "path", l.path(f.Name()))
		}
	}
	slices.SortFunc(found, byPlace)
	return packs, found, nil
}

// byPlace is the order of scan. Of two with one name, the file is what was made anew when what is in the pack was torn.
func byPlace(a, b candidate) int {
	packed := func(c candidate) int {
		if c.pack != nil {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.Min, b.Min), cmp.Compare(b.Max, a.Max), packed(a)-packed(b))
}

// readEnds reads header and trailer of an entry. The error is one of the disk; wrong content is
// noted in the candidate.
func (l *Log) readEnds(minTXID, maxTXID uint64) (c candidate, err error) {
	c.Min, c.Max = minTXID, maxTXID
	f, err := l.fs.OpenFile(l.entryPath(c.Entry), os.O_RDONLY, 0)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return c, err
	}
	return l.readEndsOf(f, info.Size(), c)
}

// readEndsOf reads header and trailer of an entry that is said to be c.
func (l *Log) readEndsOf(stored io.ReaderAt, size int64, c candidate) (candidate, error) {
	e, err := l.endsOf(stored, size, c.Max)
	if err == nil && (e.Min != c.Min || e.Max != c.Max) {
		err = corrupt("header is of transactions %016x to %016x", e.Min, e.Max)
	}
	if errors.Is(err, ErrCorrupt) {
		c.bad = err
		return c, nil
	}
	if err != nil {
		return c, err
	}
	c.Entry = e
	return c, nil
}

// endsOf reads what stored bytes of an entry say that they are.
func (l *Log) endsOf(f io.ReaderAt, stored int64, maxTXID uint64) (Entry, error) {
	if stored < minEntrySize {
		return Entry{}, corrupt("file has %d bytes, want at least %d", stored, minEntrySize)
	}
	begin := make([]byte, min(stored, int64(l.form.headSize())))
	if err := readFull(f, begin, 0); err != nil {
		return Entry{}, err
	}
	size := l.form.entrySize(begin, stored)
	content, err := l.form.open(f, begin, size, maxTXID)
	if err != nil {
		return Entry{}, err
	}
	var head [ltx.HeaderSize]byte
	var tail [ltx.TrailerSize]byte
	if err := readFull(content, head[:], 0); err != nil {
		return Entry{}, err
	}
	if err := readFull(content, tail[:], size-ltx.TrailerSize); err != nil {
		return Entry{}, err
	}
	return parseEnds(head[:], tail[:], size)
}

func parseEnds(head, tail []byte, size int64) (Entry, error) {
	h, err := parseHeader(head)
	if err != nil {
		return Entry{}, err
	}
	var t ltx.Trailer
	if err := t.UnmarshalBinary(tail); err != nil {
		return Entry{}, corrupt("trailer: %w", err)
	}
	if err := t.Validate(h); err != nil {
		return Entry{}, corrupt("trailer: %w", err)
	}
	return newEntry(h, uint64(t.PostApplyChecksum), size), nil
}

// resolveOverlaps prefers an entry to those it covers, which are returned apart, provided it is
// whole.
func (l *Log) resolveOverlaps(found []candidate, mark uint64) (chain, covered []candidate, err error) {
	for len(found) > 0 {
		c := found[0]
		found = found[1:]
		n := 0
		for n < len(found) && found[n].Max <= c.Max {
			n++
		}
		if n > 0 {
			bad, err := l.check(c)
			if err != nil {
				return nil, nil, err
			}
			if bad != nil {
				l.drop(c, mark, bad)
				continue
			}
			covered = append(covered, found[:n]...)
			found = found[n:]
		}
		chain = append(chain, c)
	}
	return chain, covered, nil
}

// check verifies a candidate completely. The second result is an error of the disk.
func (l *Log) check(c candidate) (bad, err error) {
	if c.bad != nil {
		return c.bad, nil
	}
	err = l.verify(c.Entry, c.place)
	if errors.Is(err, ErrCorrupt) {
		return err, nil
	}
	return nil, err
}

// fault is the first place where a chain is broken.
type fault struct {
	index int    // first entry that is unusable
	txid  uint64 // first transaction that is missing
	torn  bool   // the content of the entry is wrong, not its place
	err   error
}

// cutFaults drops what a crash can have left and returns a chain without a fault.
func (l *Log) cutFaults(chain []candidate, mark uint64, repair bool) ([]candidate, error) {
	for {
		f, err := l.firstFault(chain, mark)
		if err != nil {
			return nil, err
		}
		if f == nil {
			return chain, nil
		}
		// One damaged entry at the end is dropped even when it was durable: followers or the WAL
		// have it. More than one is not what a crash leaves, be they damaged or gone.
		tornLast := f.torn && f.index == len(chain)-1 && !l.droppedDurable() && chain[f.index].Max >= mark
		if !tornLast && f.txid <= mark && !repair {
			return nil, &BrokenError{TXID: f.txid, Err: f.err}
		}
		for _, c := range chain[f.index:] {
			l.drop(c, mark, f.err)
		}
		chain = chain[:f.index]
	}
}

// alwaysVerified is the size in bytes up to which the newest entry is verified
// although it is known to be on disk. A larger one would make every start read
// as much as its transaction wrote.
const alwaysVerified = 4 << 20

func (l *Log) firstFault(chain []candidate, mark uint64) (*fault, error) {
	for i, c := range chain {
		if i > 0 && c.Min != chain[i-1].Max+1 {
			next := chain[i-1].Max + 1
			return &fault{index: i, txid: min(next, c.Min), err: corrupt("%s follows transaction %016x", entryName(c.Min, c.Max), next-1)}, nil
		}
		if c.bad == nil && i > 0 && c.Pre != chain[i-1].Post {
			if bad, err := l.check(chain[i-1]); bad != nil || err != nil {
				return &fault{index: i - 1, txid: chain[i-1].Min, torn: true, err: bad}, err
			}
			return &fault{index: i, txid: c.Min, err: corrupt("%s follows checksum %016x, the entry before ends with %016x",
				entryName(c.Min, c.Max), c.Pre, chain[i-1].Post)}, nil
		}
		bad := c.bad
		if c.Max > mark || i == len(chain)-1 && c.Size <= alwaysVerified {
			var err error
			if bad, err = l.check(c); err != nil {
				return nil, err
			}
		}
		if bad != nil {
			return &fault{index: i, txid: c.Min, torn: true, err: bad}, nil
		}
	}
	return nil, nil
}

// checkMark: the log must reach the durable position, or what is missing was reported.
func (l *Log) checkMark(chain []candidate, mark uint64, repair bool) error {
	var head uint64
	if len(chain) > 0 {
		head = chain[len(chain)-1].Max
	}
	if head >= mark || l.droppedDurable() || repair {
		return nil
	}
	return &BrokenError{TXID: head + 1, Err: fmt.Errorf("entries up to transaction %016x were durable and are gone: %w", mark, fs.ErrNotExist)}
}

func (l *Log) droppedDurable() bool {
	return slices.ContainsFunc(l.dropped, func(d Dropped) bool { return d.Durable })
}

func (l *Log) drop(c candidate, mark uint64, why error) {
	l.dropped = append(l.dropped, Dropped{Min: c.Min, Max: c.Max, Durable: c.Max <= mark, Err: why, packed: c.pack != nil})
}

// cleanUp removes what was dropped and what is covered, the newest first.
func (l *Log) cleanUp(covered []candidate, packs []*pack) error {
	if head, _ := l.Head(); len(l.dropped) > 0 || l.synced() > head.Max {
		if err := l.lowerMark(head.Max); err != nil {
			return err
		}
	}
	if err := l.forgetRecent(); err != nil {
		return err
	}
	removed, cut, err := l.cleanUpPacks(packs)
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(l.dropped) {
		if !d.packed {
			removed = append(removed, entryName(d.Min, d.Max))
		}
	}
	for _, c := range covered {
		if c.pack == nil {
			removed = append(removed, entryName(c.Min, c.Max))
		}
	}
	for _, name := range removed {
		if err := l.remove(name); err != nil {
			return err
		}
	}
	if len(removed) == 0 && !cut {
		return nil
	}
	return l.fs.SyncDir(l.dir)
}

// cleanUpPacks cuts packs behind their last listed entry, and returns the names of those that have none.
func (l *Log) cleanUpPacks(packs []*pack) (empty []string, cut bool, err error) {
	last := make(map[*pack]Entry)
	for _, e := range l.Entries() {
		if p := l.placeOf(e).pack; p != nil {
			last[p] = e
		}
	}
	for _, p := range slices.Backward(packs) {
		e, ok := last[p]
		if !ok {
			empty = append(empty, p.name)
			continue
		}
		if where := l.placeOf(e); p.size > where.end() {
			if err := l.cutPack(e, where); err != nil {
				return nil, false, err
			}
			cut = true
		}
	}
	return empty, cut, nil
}
