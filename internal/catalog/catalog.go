// Package catalog knows what is where in an object store that holds archives: the databases, the
// histories of each, the objects of each history (docs/archive.md).
//
//	app.db/history-00000001/ltx/0/0000000000000001-0000000000000001.ltx
//	DATABASE/HISTORY/LEVEL/MOMENTS
package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/litefs/litefs/internal/archive"
	"github.com/litefs/litefs/internal/objstore"
)

// Name is the name of the n-th history.
func Name(n uint64) string { return fmt.Sprintf("history-%08d", n) }

var historyRE = regexp.MustCompile(`^history-([0-9]{8,18})$`)

// Number is the inverse of Name.
func Number(name string) (uint64, bool) {
	m := historyRE.FindStringSubmatch(name)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseUint(m[1], 10, 63)
	return n, err == nil && n > 0 && Name(n) == name
}

// Histories returns the numbers of a database's histories, ascending.
func Histories(ctx context.Context, s objstore.Store, database string) ([]uint64, error) {
	names, err := s.Folders(ctx, Of(database))
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := Number(name); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// Folder is the folder of a history, with a slash at its end.
func Folder(database string, n uint64) string { return Of(database) + Name(n) + "/" }

// Of is the folder of a database, with a slash at its end: its name, with %Folder for what a key must
// not have.
func Of(database string) string {
	var b strings.Builder
	for i, part := range strings.Split(database, "/") {
		if i > 0 {
			b.WriteByte('/')
		}
		hide := strings.HasPrefix(part, ".tmp-") || historyRE.MatchString(part)
		for j, r := range []byte(part) {
			if r < ' ' || r == 0x7f || r == '%' || j == 0 && hide || r >= 0x80 && !utf8.ValidString(part) {
				fmt.Fprintf(&b, "%%%02X", r)
			} else {
				b.WriteByte(r)
			}
		}
	}
	return b.String() + "/"
}

// KeyOf is where the data key of a database is kept, whose folder is given (package sealstore). No history has
// number 0, and no database's folder is called like a history.
func KeyOf(folder string) string { return folder + Name(0) + "/key" }

// Split takes the key of an object of a history apart: the folder of its database, and its name below; false
// for the key of anything else.
func Split(key string) (folder, name string, ok bool) {
	for i := 0; i < len(key); {
		part, rest, more := strings.Cut(key[i:], "/")
		if !more {
			return "", "", false
		}
		if _, ok := Number(part); ok && i > 0 && rest != "" {
			return key[:i], key[i:], true
		}
		i += len(part) + 1
	}
	return "", "", false
}

// Objects returns the objects of a history whose keys, below its folder, begin with prefix.
func Objects(ctx context.Context, s objstore.Store, layout archive.Layout, folder, prefix string) ([]archive.Object, error) {
	var objects []archive.Object
	for info, err := range s.List(ctx, folder+prefix, "") {
		if err != nil {
			return nil, err
		}
		if o, ok := layout.Parse(strings.TrimPrefix(info.Key, folder)); ok {
			o.Size, o.Modified = info.Size, info.Modified
			objects = append(objects, o)
		}
	}
	return objects, nil
}

// All returns the objects of every history of a database, by number. One that has none, but anything else, is there too.
func All(ctx context.Context, s objstore.Store, layout archive.Layout, database string) (map[uint64][]archive.Object, error) {
	all := map[uint64][]archive.Object{}
	prefix := Of(database)
	for info, err := range s.List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		name, key, _ := strings.Cut(strings.TrimPrefix(info.Key, prefix), "/")
		n, ok := Number(name)
		if !ok {
			continue // of a database below a folder of this name
		}
		if o, ok := layout.Parse(key); ok {
			o.Size, o.Modified = info.Size, info.Modified
			all[n] = append(all[n], o)
		} else if _, known := all[n]; !known {
			all[n] = nil
		}
	}
	return all, nil
}

// Header reads the header of an object.
func Header(ctx context.Context, s objstore.Store, layout archive.Layout, folder string, o archive.Object, ours bool) (h archive.Header, err error) {
	key := folder + layout.Key(o)
	got, err := s.Get(ctx, key, objstore.Range{Len: archive.HeaderSize})
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, got.Body.Close()) }()
	b := make([]byte, archive.HeaderSize)
	n, err := io.ReadFull(got.Body, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return h, fmt.Errorf("read %s: %w", key, err)
	}
	if h, err = archive.ParseHeader(b[:n], ours); err != nil {
		return h, fmt.Errorf("%s: %w", key, err)
	}
	if h.Min != o.Min || h.Max != o.Max {
		return h, fmt.Errorf("%s: %w: its header says moments %d to %d", key, archive.ErrCorrupt, h.Min, h.Max)
	}
	return h, nil
}

// nameOf is the inverse of Of, without the slash.
func nameOf(folder string) string {
	var b strings.Builder
	for i := 0; i < len(folder); i++ {
		if folder[i] == '%' && i+2 < len(folder) {
			if n, err := strconv.ParseUint(folder[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(folder[i])
	}
	return b.String()
}

// maxDepth bounds how deep folders are looked into.
const maxDepth = 32

// Databases returns the names of the databases that have a history, sorted.
func Databases(ctx context.Context, s objstore.Store) ([]string, error) {
	var names []string
	var walk func(prefix string, depth int) error
	walk = func(prefix string, depth int) error {
		if depth > maxDepth {
			return nil
		}
		folders, err := s.Folders(ctx, prefix)
		if err != nil {
			return err
		}
		found := false
		for _, f := range folders {
			if _, ok := Number(f); ok {
				found = true
				continue
			}
			if err := walk(prefix+f+"/", depth+1); err != nil {
				return err
			}
		}
		if found && prefix != "" {
			names = append(names, nameOf(strings.TrimSuffix(prefix, "/")))
		}
		return nil
	}
	err := walk("", 0)
	slices.Sort(names)
	return names, err
}
