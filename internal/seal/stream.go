package seal

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What is sealed begins with a header, which is in the clear and is authenticated by what follows, and goes
// on with chunks, each with a tag of its own:
//
//	0   8   magic
//	8  16   id of the data key
//	24 32   salt, random
//	56      chunks: the first of FirstChunk bytes, then of chunkSize, the last one shorter; and 16 for the tag
//
// The key of the chunks is derived from the data key, the salt and the name of the object. So no two objects
// share a key, and none can be read under another's name. A chunk's nonce is its number and, in the last
// byte, whether it is the last: chunks that change places, or are missing at the end, do not open. This is
// the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár with AES-256-GCM.
const (
	magic      = "litefsE1"
	headerSize = len(magic) + idSize + saltSize
	idSize     = 16
	saltSize   = 32
	tagSize    = 16

	// FirstChunk is how many bytes can be read without more than the first chunk.
	FirstChunk = 128
	chunkSize  = 64 << 10

	// HeadSize is how many sealed bytes the first chunk needs.
	HeadSize = headerSize + FirstChunk + tagSize
)

// Sealed reports whether something that begins with b is sealed. All of its first eight bytes are asked for.
func Sealed(b []byte) bool { return len(b) >= len(magic) && string(b[:len(magic)]) == magic }

// SealedSize is how large something of size bytes gets.
func SealedSize(size int64) int64 {
	chunks := int64(1)
	if size > FirstChunk {
		chunks += (size - FirstChunk + chunkSize - 1) / chunkSize
	}
	return int64(headerSize) + size + chunks*tagSize
}

// PlainSize is the inverse of SealedSize; 0 for what is too small to be sealed.
func PlainSize(sealed int64) int64 {
	rest := sealed - int64(headerSize)
	if rest <= FirstChunk+tagSize {
		return max(rest-tagSize, 0)
	}
	rest -= FirstChunk + tagSize
	chunks := (rest + chunkSize + tagSize - 1) / (chunkSize + tagSize)
	return FirstChunk + max(rest-chunks*tagSize, 0)
}

// chunkAt is where a chunk begins: in the content, and how long it may be.
func chunkAt(n int64) (offset int64, size int) {
	if n == 0 {
		return 0, FirstChunk
	}
	return FirstChunk + (n-1)*chunkSize, chunkSize
}

// aead makes the cipher of one object.
func (d DataKey) aead(salt []byte, name string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, d.secret[:], salt, "litefs object 1 "+name, keySize)
	if err != nil {
		return nil, err
	}
	return newGCM(key)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// nonce is that of a chunk.
func nonce(n int64, last bool) []byte {
	var b [12]byte
	binary.BigEndian.PutUint64(b[3:], uint64(n))
	if last {
		b[11] = 1
	}
	return b[:]
}

// Body is the sealed form of a content, made while it is read. It can be read more than once, and is the
// same each time as long as the content is.
type Body struct {
	plain  io.ReadSeeker
	size   int64 // of the content
	header []byte
	aead   cipher.AEAD
	at     int64 // in the sealed form

	chunk  int64 // that sealed holds; -1: none
	sealed []byte
	buf    []byte
}

// NewBody seals a content under a name.
func NewBody(d DataKey, name string, plain io.ReadSeeker) (*Body, error) {
	size, err := plain.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	header, aead, err := d.begin(name)
	if err != nil {
		return nil, err
	}
	return &Body{plain: plain, size: size, header: header, aead: aead, chunk: -1}, nil
}

// Seek is io.Seeker's.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += SealedSize(b.size)
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of a sealed object")
	}
	b.at = offset
	return offset, nil
}

// Read is io.Reader's.
func (b *Body) Read(p []byte) (int, error) {
	if b.at < int64(headerSize) {
		n := copy(p, b.header[b.at:])
		b.at += int64(n)
		return n, nil
	}
	if b.at >= SealedSize(b.size) {
		return 0, io.EOF
	}
	chunk, in := int64(0), b.at-int64(headerSize)
	if in >= FirstChunk+tagSize {
		in -= FirstChunk + tagSize
		chunk, in = 1+in/(chunkSize+tagSize), in%(chunkSize+tagSize)
	}
	if chunk != b.chunk {
		if err := b.seal(chunk); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.sealed[in:])
	b.at += int64(n)
	return n, nil
}

// seal makes a chunk.
func (b *Body) seal(n int64) error {
	offset, size := chunkAt(n)
	last := b.size <= offset+int64(size)
	if last {
		size = int(b.size - offset)
	}
	b.chunk = -1
	b.buf = append(b.buf[:0], make([]byte, size)...)
	if _, err := b.plain.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.ReadFull(b.plain, b.buf); err != nil {
		return fmt.Errorf("read what is sealed, at byte %d of %d: %w", offset, b.size, err)
	}
	b.sealed = b.aead.Seal(b.sealed[:0], nonce(n, last), b.buf, nil)
	b.chunk = n
	return nil
}

// ErrDamaged: it is not what was sealed, or not all of it, or not under this name.
var ErrDamaged = errors.New("it is not what was encrypted under this name")

// errPlain is what is not taken for encrypted: anybody can have written it.
var errPlain = fmt.Errorf("%w: it is not encrypted at all (what was written before there was a key can be read without one)", ErrDamaged)

// Reader opens what was sealed. Every byte that it gives is authentic; that there are no more is known when
// it has returned io.EOF.
type Reader struct {
	r    *bufio.Reader
	aead cipher.AEAD
	next int64 // chunk
	buf  []byte
	left []byte // opened, not yet read
	last bool
}

// NewReader reads the header of what was sealed under a name. find gives the data key of an id.
func NewReader(r io.Reader, name string, find func(id [16]byte) (DataKey, error)) (*Reader, error) {
	s := &Reader{r: bufio.NewReaderSize(r, chunkSize+tagSize+1)}
	header := make([]byte, headerSize)
	n, err := io.ReadFull(s.r, header)
	if n >= len(magic) && !Sealed(header) {
		return nil, errPlain
	}
	if err != nil {
		return nil, unexpected(err)
	}
	d, err := find([16]byte(header[len(magic):]))
	if err != nil {
		return nil, err
	}
	s.aead, err = d.aead(header[headerSize-saltSize:], name)
	return s, err
}

// OpenHead opens the first chunk of what was sealed, which b is the first HeadSize bytes of, or all: total
// says how large it is.
func OpenHead(b []byte, total int64, name string, find func(id [16]byte) (DataKey, error)) ([]byte, error) {
	if !Sealed(b) {
		return nil, errPlain
	}
	if len(b) < headerSize || int64(len(b)) < min(total, int64(HeadSize)) {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrDamaged, len(b))
	}
	d, err := find([16]byte(b[len(magic):]))
	if err != nil {
		return nil, err
	}
	aead, err := d.aead(b[headerSize-saltSize:headerSize], name)
	if err != nil {
		return nil, err
	}
	out, err := aead.Open(nil, nonce(0, total <= int64(HeadSize)), b[headerSize:min(len(b), HeadSize)], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: its first bytes", ErrDamaged)
	}
	return out, nil
}

// Read is io.Reader's.
func (s *Reader) Read(p []byte) (int, error) {
	for len(s.left) == 0 {
		if s.last {
			return 0, io.EOF
		}
		if err := s.open(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

// open opens the next chunk.
func (s *Reader) open() error {
	offset, size := chunkAt(s.next)
	s.buf = append(s.buf[:0], make([]byte, size+tagSize)...)
	n, err := io.ReadFull(s.r, s.buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return unexpected(err) // also a content that ends where a chunk does: the last one was not marked
	}
	if _, err := s.r.Peek(1); errors.Is(err, io.EOF) {
		s.last = true
	} else if err != nil {
		return err
	}
	if s.left, err = s.aead.Open(s.buf[:0], nonce(s.next, s.last), s.buf[:n], nil); err != nil {
		return fmt.Errorf("%w: the part at byte %d", ErrDamaged, offset)
	}
	s.next++
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut", ErrDamaged)
	}
	return err
}
