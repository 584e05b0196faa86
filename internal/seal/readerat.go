package seal

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
)

// ReaderAt opens parts of what was sealed. Every byte that it gives is authentic. It is not for several
// goroutines.
type ReaderAt struct {
	r    io.ReaderAt
	aead cipher.AEAD
	size int64  // of the content
	head []byte // of the sealed form: what was read of it already

	chunk          int64 // that opened holds; -1: none
	sealed, opened []byte
}

// NewReaderAt opens a content of size bytes that was sealed under a name. head is what has been read of its
// sealed form: HeadSize bytes, or more, or all. find gives the data key of an id.
func NewReaderAt(r io.ReaderAt, head []byte, size int64, name string, find func(id [16]byte) (DataKey, error)) (*ReaderAt, error) {
	if !Sealed(head) {
		return nil, errPlain
	}
	if len(head) < headerSize {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrDamaged, len(head))
	}
	d, err := find([16]byte(head[len(magic):]))
	if err != nil {
		return nil, err
	}
	aead, err := d.aead(head[headerSize-saltSize:headerSize], name)
	if err != nil {
		return nil, err
	}
	return &ReaderAt{r: r, aead: aead, size: size, head: head, chunk: -1}, nil
}

// ReadAt is io.ReaderAt's.
func (s *ReaderAt) ReadAt(p []byte, at int64) (n int, err error) {
	if at < 0 {
		return 0, errors.New("read before the start of what is sealed")
	}
	for n < len(p) {
		if at >= s.size {
			return n, io.EOF
		}
		chunk := int64(0)
		if at >= FirstChunk {
			chunk = 1 + (at-FirstChunk)/chunkSize
		}
		if chunk != s.chunk {
			if err := s.open(chunk); err != nil {
				return n, err
			}
		}
		offset, _ := chunkAt(chunk)
		m := copy(p[n:], s.opened[at-offset:])
		n, at = n+m, at+int64(m)
	}
	return n, nil
}

// open opens a chunk that the content has.
func (s *ReaderAt) open(chunk int64) error {
	offset, most := chunkAt(chunk)
	size := int(min(int64(most), s.size-offset))
	from := int64(headerSize) + offset + chunk*tagSize
	end := from + int64(size) + tagSize
	var sealed []byte
	if end <= int64(len(s.head)) {
		sealed = s.head[from:end]
	} else {
		if cap(s.sealed) < size+tagSize {
			s.sealed = make([]byte, size+tagSize)
		}
		sealed = s.sealed[:size+tagSize]
		if n, err := s.r.ReadAt(sealed, from); n < len(sealed) {
			if err == nil || errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: it is cut at byte %d", ErrDamaged, from+int64(n))
			}
			return err
		}
	}
	s.chunk = -1
	opened, err := s.aead.Open(s.opened[:0], nonce(chunk, offset+int64(size) == s.size), sealed, nil)
	if err != nil {
		return fmt.Errorf("%w: the part at byte %d", ErrDamaged, offset)
	}
	s.chunk, s.opened = chunk, opened
	return nil
}
