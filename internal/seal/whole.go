package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"io"
)

// begin draws the salt of something new: its header, and the cipher of its chunks.
func (d DataKey) begin(name string) (header []byte, aead cipher.AEAD, err error) {
	header = append(make([]byte, 0, headerSize), magic...)
	header = append(header, d.ID[:]...)
	header = header[:headerSize]
	salt := header[headerSize-saltSize:]
	if _, err := rand.Read(salt); err != nil {
		return nil, nil, err
	}
	aead, err = d.aead(salt, name)
	return header, aead, err
}

// Append seals a content that is in memory, and appends its sealed form to dst.
func Append(dst []byte, d DataKey, name string, plain []byte) ([]byte, error) {
	header, aead, err := d.begin(name)
	if err != nil {
		return dst, err
	}
	dst = append(dst, header...)
	for n := int64(0); ; n++ {
		_, size := chunkAt(n)
		last := len(plain) <= size
		part := plain[:min(size, len(plain))]
		dst = aead.Seal(dst, nonce(n, last), part, nil)
		if last {
			return dst, nil
		}
		plain = plain[size:]
	}
}

// Writer seals a content while it is written. What was written is whole when Close has returned.
type Writer struct {
	w     io.Writer
	aead  cipher.AEAD
	next  int64  // chunk
	held  []byte // of the content: a chunk at most, which is the last one unless more comes
	out   []byte // sealed: it goes to w with the next call
	begun bool
}

// NewWriter seals what is written to it under a name, and writes it to w.
func NewWriter(w io.Writer, d DataKey, name string) (*Writer, error) {
	header, aead, err := d.begin(name)
	if err != nil {
		return nil, err
	}
	return &Writer{w: w, aead: aead, out: header}, nil
}

// Write is io.Writer's. There are as many writes to what is below.
func (s *Writer) Write(p []byte) (int, error) {
	if s.begun {
		if err := s.flush(); err != nil {
			return 0, err
		}
	}
	s.begun = true
	for rest := p; len(rest) > 0; {
		_, size := chunkAt(s.next)
		if len(s.held) == size {
			s.seal(false)
			continue
		}
		n := min(size-len(s.held), len(rest))
		s.held = append(s.held, rest[:n]...)
		rest = rest[n:]
	}
	return len(p), nil
}

func (s *Writer) seal(last bool) {
	s.out = s.aead.Seal(s.out, nonce(s.next, last), s.held, nil)
	s.held = s.held[:0]
	s.next++
}

func (s *Writer) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.w.Write(s.out)
	s.out = s.out[:0]
	return err
}

// Close seals the last chunk. What is below stays open.
func (s *Writer) Close() error {
	s.seal(true)
	return s.flush()
}
