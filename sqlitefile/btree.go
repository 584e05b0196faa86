package sqlitefile

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Types of b-tree pages (fileformat2.html 1.6).
const (
	indexInterior = 2
	tableInterior = 5
	indexLeaf     = 10
	tableLeaf     = 13
)

// ErrTree is returned for b-trees that are not as SQLite writes them.
var ErrTree = errors.New("damaged b-tree")

// maxTreeDepth is more than a database of 2^32 pages can have.
const maxTreeDepth = 40

// Pages returns the content of one page. It is not changed, and need not stay valid after the next call.
type Pages func(pgno uint32) ([]byte, error)

// SchemaObject is a row of sqlite_schema (fileformat2.html 2.6).
type SchemaObject struct {
	Type  string // "table", "index", "view", "trigger"
	Name  string
	Table string // that it belongs to
	Root  uint32 // page; 0 for what has no b-tree
}

// Tree is a database file's b-trees, to be walked. It trusts nothing that it reads: a page that comes twice,
// a pointer out of bounds is ErrTree.
type Tree struct {
	read   Pages
	hdr    Header
	usable int             // bytes of a page
	seen   map[uint32]bool // pages that belong to a b-tree already walked
}

// NewTree returns the b-trees of the database whose pages read returns.
func NewTree(read Pages) (*Tree, error) {
	b, err := read(1)
	if err != nil {
		return nil, err
	}
	hdr, err := ParseHeader(b)
	if err != nil {
		return nil, err
	}
	return &Tree{read: read, hdr: hdr, usable: int(hdr.PageSize) - int(hdr.Reserved), seen: map[uint32]bool{}}, nil
}

// Schema returns the rows of sqlite_schema, that of itself first.
func (t *Tree) Schema() ([]SchemaObject, error) {
	objects := []SchemaObject{{Type: "table", Name: "sqlite_schema", Table: "sqlite_schema", Root: 1}}
	seen := t.seen
	t.seen = map[uint32]bool{} // page 1 will be walked again
	defer func() { t.seen = seen }()
	_, err := t.walk(1, 0, nil, func(payload []byte) error {
		o, err := parseSchemaRow(payload)
		if err == nil {
			objects = append(objects, o)
		}
		return err
	})
	return objects, err
}

// Walk visits the b-tree at root: page is called with the number of each of its pages, those of overflowing
// rows among them. It returns how many rows the b-tree has.
func (t *Tree) Walk(root uint32, page func(pgno uint32)) (rows int64, err error) {
	return t.walk(root, 0, page, nil)
}

func (t *Tree) visit(pgno uint32, page func(uint32)) ([]byte, error) {
	if pgno == 0 || t.seen[pgno] {
		return nil, fmt.Errorf("%w: page %d is pointed to twice, or does not exist", ErrTree, pgno)
	}
	t.seen[pgno] = true
	if page != nil {
		page(pgno)
	}
	b, err := t.read(pgno)
	if err != nil {
		return nil, err
	}
	if len(b) < int(t.hdr.PageSize) {
		return nil, fmt.Errorf("%w: page %d has %d bytes", ErrTree, pgno, len(b))
	}
	return b, nil
}

func (t *Tree) walk(pgno uint32, depth int, page func(uint32), row func(payload []byte) error) (rows int64, err error) {
	if depth > maxTreeDepth {
		return 0, fmt.Errorf("%w: more than %d levels at page %d", ErrTree, maxTreeDepth, pgno)
	}
	b, err := t.visit(pgno, page)
	if err != nil {
		return 0, err
	}
	b = append([]byte(nil), b[:t.hdr.PageSize]...) // children are read while it is in use
	n := node{pgno: pgno, b: b}
	if pgno == 1 {
		n.at = HeaderSize
	}
	if err := n.parse(t.usable); err != nil {
		return 0, err
	}
	for i := range n.cells {
		c, err := n.cell(i, t.usable)
		if err != nil {
			return rows, err
		}
		if c.child != 0 {
			m, err := t.walk(c.child, depth+1, page, row)
			if rows += m; err != nil {
				return rows, err
			}
		}
		if n.kind == tableInterior {
			continue // only a key
		}
		rows++
		payload, err := t.payload(c, page, row != nil)
		if err != nil {
			return rows, err
		}
		if row != nil {
			if err := row(payload); err != nil {
				return rows, err
			}
		}
	}
	if n.right != 0 {
		m, err := t.walk(n.right, depth+1, page, row)
		return rows + m, err
	}
	return rows, nil
}

// node is one page of a b-tree.
type node struct {
	pgno  uint32
	b     []byte
	at    int // offset of the page's header
	kind  byte
	cells int
	right uint32 // rightmost child; 0 on a leaf
	array int    // offset of the array of cells
}

func (n *node) parse(usable int) error {
	h := n.b[n.at:]
	n.kind, n.cells, n.array = h[0], int(binary.BigEndian.Uint16(h[3:])), n.at+8
	switch n.kind {
	case indexInterior, tableInterior:
		n.right, n.array = binary.BigEndian.Uint32(h[8:]), n.at+12
		if n.right == 0 {
			return fmt.Errorf("%w: page %d has no rightmost child", ErrTree, n.pgno)
		}
	case indexLeaf, tableLeaf:
	default:
		return fmt.Errorf("%w: page %d is of type %d", ErrTree, n.pgno, n.kind)
	}
	if n.array+2*n.cells > usable {
		return fmt.Errorf("%w: page %d has %d cells", ErrTree, n.pgno, n.cells)
	}
	return nil
}

// cell is one cell of a page (fileformat2.html 1.6).
type cell struct {
	child    uint32 // 0 on a leaf
	size     int64  // bytes of the payload
	local    []byte // its part on the page
	overflow uint32 // first page of the rest; 0: there is none
}

func (n *node) cell(i, usable int) (c cell, err error) {
	at := int(binary.BigEndian.Uint16(n.b[n.array+2*i:]))
	if at >= usable {
		return c, fmt.Errorf("%w: page %d has a cell at byte %d", ErrTree, n.pgno, at)
	}
	b := n.b[at:usable]
	bad := func() (cell, error) {
		return cell{}, fmt.Errorf("%w: page %d has a cell at byte %d that does not end", ErrTree, n.pgno, at)
	}
	if n.kind == tableInterior || n.kind == indexInterior {
		if len(b) < 4 {
			return bad()
		}
		c.child, b = binary.BigEndian.Uint32(b), b[4:]
		if c.child == 0 {
			return bad()
		}
	}
	if n.kind == tableInterior {
		return c, nil
	}
	size, k := varint(b)
	if k == 0 || size > 1<<31 {
		return bad()
	}
	b = b[k:]
	if n.kind == tableLeaf {
		if _, k = varint(b); k == 0 {
			return bad()
		}
		b = b[k:]
	}
	c.size = int64(size)
	local := localPayload(n.kind == tableLeaf, usable, int64(size))
	if local > len(b) {
		return bad()
	}
	c.local, b = b[:local], b[local:]
	if int64(local) < c.size {
		if len(b) < 4 {
			return bad()
		}
		if c.overflow = binary.BigEndian.Uint32(b); c.overflow == 0 {
			return bad()
		}
	}
	return c, nil
}

// localPayload returns how many bytes of a payload are on its page (fileformat2.html 1.6, "overflow").
func localPayload(table bool, usable int, size int64) int {
	most := (usable-12)*64/255 - 23
	if table {
		most = usable - 35
	}
	if size <= int64(most) {
		return int(size)
	}
	least := (usable-12)*32/255 - 23
	if k := least + int((size-int64(least))%int64(usable-4)); k <= most {
		return k
	}
	return least
}

// payload visits the overflow pages of a cell and, if it is wanted, returns all of its payload.
func (t *Tree) payload(c cell, page func(uint32), wanted bool) ([]byte, error) {
	payload := c.local
	if wanted {
		payload = append([]byte(nil), c.local...)
	}
	for next, left := c.overflow, c.size-int64(len(c.local)); left > 0; {
		b, err := t.visit(next, page)
		if err != nil {
			return nil, err
		}
		n := min(left, int64(t.usable-4))
		if wanted {
			payload = append(payload, b[4:4+n]...)
		}
		next, left = binary.BigEndian.Uint32(b), left-n
	}
	return payload, nil
}

// parseSchemaRow reads the first four columns of a record (fileformat2.html 2.1).
func parseSchemaRow(b []byte) (o SchemaObject, err error) {
	bad := fmt.Errorf("%w: a row of sqlite_schema is no record", ErrTree)
	size, k := varint(b)
	if k == 0 || size < uint64(k) || size > uint64(len(b)) {
		return o, bad
	}
	header, body := b[k:size], b[size:]
	var columns [4][]byte
	var types [4]uint64
	for i := range columns {
		typ, k := varint(header)
		n := serialSize(typ)
		if k == 0 || n > uint64(len(body)) {
			return o, bad
		}
		columns[i], types[i] = body[:n], typ
		header, body = header[k:], body[n:]
	}
	o.Type, o.Name, o.Table = string(columns[0]), string(columns[1]), string(columns[2])
	var root uint64
	for _, c := range columns[3] {
		root = root<<8 | uint64(c)
	}
	if types[3] == 9 {
		root = 1
	}
	if root > 1<<32-1 {
		return o, bad
	}
	o.Root = uint32(root)
	return o, nil
}

// serialSize returns the bytes of a value of a serial type.
func serialSize(typ uint64) uint64 {
	switch {
	case typ >= 12:
		return (typ - 12) / 2
	case typ >= 8 || typ == 0:
		return 0
	default:
		return [...]uint64{0, 1, 2, 3, 4, 6, 8, 8}[typ]
	}
}

// varint reads a variable-length integer and how many bytes it has, 0 when b ends within it.
func varint(b []byte) (v uint64, n int) {
	for n < 8 && n < len(b) {
		v = v<<7 | uint64(b[n]&0x7f)
		if n++; b[n-1] < 0x80 {
			return v, n
		}
	}
	if n < 8 || n >= len(b) {
		return 0, 0
	}
	return v<<8 | uint64(b[8]), 9
}
