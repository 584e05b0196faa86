package ltxlog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/superfly/ltx"
)

// PageCount returns how many pages an entry has, by its index: the pages are not read.
func (l *Log) PageCount(e Entry) (n uint32, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("count the pages of %s: %w", entryName(e.Min, e.Max), err)
		}
	}()
	if b, ok := l.Live(e); ok {
		return countPages(bytes.NewReader(b), e)
	}
	f, err := l.open(e)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return countPages(f, e)
}

// countPages reads the index at the end of an entry: for each page three uvarints (page, offset, size), then a zero.
func countPages(f io.ReaderAt, e Entry) (uint32, error) {
	var b [8]byte
	end := e.Size - ltx.TrailerSize - int64(len(b))
	if err := readFull(f, b[:], end); err != nil {
		return 0, err
	}
	length := binary.BigEndian.Uint64(b[:])
	if length > uint64(max(end-ltx.HeaderSize, 0)) {
		return 0, corrupt("index has %d bytes", length)
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, end-int64(length), int64(length)), 16<<10)
	for n := uint32(0); ; n++ {
		for i := range 3 {
			v, err := binary.ReadUvarint(r)
			if err != nil {
				return 0, corrupt("index: %w", err)
			}
			if i == 0 && v == 0 {
				return n, nil
			}
		}
	}
}
