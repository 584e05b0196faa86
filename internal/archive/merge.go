package archive

import (
	"errors"
	"fmt"
	"io"
)

// Merge puts objects together that follow each other, oldest first, as one: the newest content of each
// page. Each object is read once, page by page, so memory does not grow with them.
//
// ltx.Compactor is not used: it brings back old content of a page that was cut off and added again.
// Here every object carries all pages that the database grew by, so the newest content of a page that is
// in the database is always the right one, and none has to be added.
func Merge(w io.Writer, parts []io.Reader) (h Header, size int64, err error) {
	if len(parts) == 0 {
		return h, 0, errors.New("put objects together: there are none")
	}
	sources := make([]*source, len(parts))
	var count uint32
	for i, r := range parts {
		d, err := NewReader(r, true)
		if err != nil {
			return h, 0, err
		}
		if i > 0 {
			last := sources[i-1].d.Header
			if d.Header.Min != last.Max+1 || d.Header.PageSize != last.PageSize {
				return h, 0, corrupt("moments %d to %d of %d bytes a page follow moment %d of %d", d.Header.Min, d.Header.Max, d.Header.PageSize, last.Max, last.PageSize)
			}
		}
		count = min(count+d.Header.State.Count, maxCount)
		sources[i] = &source{d: d}
		if err := sources[i].next(); err != nil {
			return h, 0, err
		}
	}
	h = sources[len(sources)-1].d.Header
	h.Min, h.State.Count = sources[0].d.Header.Min, count
	out, err := NewWriter(w, h, h.Commit)
	if err != nil {
		return h, 0, err
	}
	for {
		newest, pgno := -1, uint32(0)
		for i, s := range sources {
			if s.pgno != 0 && (newest < 0 || s.pgno <= pgno) {
				newest, pgno = i, s.pgno
			}
		}
		if newest < 0 {
			break
		}
		if err := out.Page(pgno, sources[newest].data); err != nil {
			return h, 0, err
		}
		for _, s := range sources {
			if s.pgno == pgno {
				if err := s.next(); err != nil {
					return h, 0, err
				}
			}
		}
	}
	size, err = out.Close()
	return h, size, err
}

// source is an object that is being read, at a page; pgno is 0 at its end.
type source struct {
	d    *Reader
	pgno uint32
	data []byte
}

func (s *source) next() (err error) {
	s.pgno, s.data, err = s.d.Next()
	if errors.Is(err, io.EOF) {
		s.pgno, err = 0, nil
	}
	if err != nil {
		return fmt.Errorf("moments %d to %d: %w", s.d.Header.Min, s.d.Header.Max, err)
	}
	return nil
}
