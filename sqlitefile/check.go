package sqlitefile

import (
	"encoding/binary"
	"fmt"
)

// Offsets in the database header (fileformat2.html 1.3) of what a database that
// takes another one's place must not repeat, and of the free-list.
const (
	writeVersionOffset    = 18
	readVersionOffset     = 19
	changeCounterOffset   = 24
	freelistOffset        = 32 // first trunk page, then the number of free pages
	schemaCookieOffset    = 40
	versionValidForOffset = 92
)

// Check walks all that a database of count pages points to: each b-tree of its
// schema, rows that overflow, and the free-list. A page that is pointed to twice
// or does not exist, a cell or a list that does not end is ErrTree. Pages that
// nothing points to are no fault of the format. It returns how many pages are in
// use. It holds some 40 bytes of memory for each page.
func Check(read Pages, count uint32) (used int, err error) {
	bounded := func(pgno uint32) ([]byte, error) {
		if pgno == 0 || pgno > count {
			return nil, fmt.Errorf("%w: page %d of a database of %d pages is pointed to", ErrTree, pgno, count)
		}
		return read(pgno)
	}
	t, err := NewTree(bounded)
	if err != nil {
		return 0, err
	}
	objects, err := t.Schema()
	if err != nil {
		return 0, fmt.Errorf("the schema: %w", err)
	}
	for _, o := range objects {
		if o.Root == 0 {
			continue // a view, a trigger, a virtual table
		}
		if _, err := t.Walk(o.Root, nil); err != nil {
			return 0, fmt.Errorf("%s %q: %w", o.Type, o.Name, err)
		}
	}
	if err := t.walkFreelist(bounded); err != nil {
		return 0, fmt.Errorf("the free-list: %w", err)
	}
	return len(t.seen), nil
}

// walkFreelist visits the free pages (fileformat2.html 1.5).
func (t *Tree) walkFreelist(read Pages) error {
	first, err := read(1)
	if err != nil {
		return err
	}
	trunk := binary.BigEndian.Uint32(first[freelistOffset:])
	want := binary.BigEndian.Uint32(first[freelistOffset+4:])
	n := uint32(0)
	for trunk != 0 {
		b, err := t.visit(trunk, nil)
		if err != nil {
			return err
		}
		n++
		next, leaves := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if int64(leaves) > int64(t.usable/4-2) {
			return fmt.Errorf("%w: trunk page %d has %d leaves", ErrTree, trunk, leaves)
		}
		b = append([]byte(nil), b[8:8+4*leaves]...)
		for ; len(b) > 0; b = b[4:] {
			leaf := binary.BigEndian.Uint32(b)
			if t.seen[leaf] || leaf == 0 {
				return fmt.Errorf("%w: page %d is pointed to twice, or does not exist", ErrTree, leaf)
			}
			t.seen[leaf] = true // its content is nothing
			n++
		}
		trunk = next
	}
	if n != want {
		return fmt.Errorf("%w: %d free pages, the header says %d", ErrTree, n, want)
	}
	return nil
}

// Succeed changes page 1 of a database so that it can take the place of the one
// whose header is old under connections that are open. They keep the journal mode
// that they have. They drop the pages and the schema that they remember only if
// change counter and schema cookie differ from all that they have seen (pager.c,
// pagerSharedLock; OP_Transaction), so both go on from the old ones: SQLite's
// online backup does the same. count is the size of the new database in pages.
func Succeed(page1 []byte, old Header, count uint32) {
	page1[writeVersionOffset], page1[readVersionOffset] = old.WriteVersion, old.ReadVersion
	binary.BigEndian.PutUint32(page1[changeCounterOffset:], old.ChangeCounter+1)
	binary.BigEndian.PutUint32(page1[versionValidForOffset:], old.ChangeCounter+1)
	binary.BigEndian.PutUint32(page1[PageCountOffset:], count)
	binary.BigEndian.PutUint32(page1[schemaCookieOffset:], old.SchemaCookie+1)
}
