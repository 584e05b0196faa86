package fuse

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxReading bounds the goroutines that wait in read(2). The kernel wakes them in turn, so each one more is one more
	// cold thread.
	maxReading = 1

	inHeaderSize  = int(unsafe.Sizeof(gofuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(gofuse.OutHeader{}))

	largeSize = maxWrite + 4096 // payload, headers, names
	smallSize = 4096            // any request without a payload, with two names of 255 bytes or a link's target
)

// ioBuffers carries one request and its answer.
type ioBuffers struct {
	in, out []byte
	pool    *sync.Pool
}

// bufferPools hands buffers out. A request that may wait long (in the Backend, with as many others as there are
// applications) holds small ones if it can.
type bufferPools struct {
	large, small sync.Pool
}

func newBufferPools() *bufferPools {
	p := &bufferPools{}
	p.large.New = func() any {
		b := &ioBuffers{in: make([]byte, largeSize), out: make([]byte, largeSize), pool: &p.large}
		// The kernel fails a request when it cannot write it to memory; a page that was never touched is such memory while
		// this process is being killed.
		for i := 0; i < largeSize; i += 4096 {
			b.in[i] = 1
		}
		return b
	}
	p.small.New = func() any {
		return &ioBuffers{in: make([]byte, smallSize), out: make([]byte, smallSize), pool: &p.small}
	}
	return p
}

func (p *bufferPools) get() *ioBuffers { return p.large.Get().(*ioBuffers) }

// fit moves a request of n bytes into small buffers if it and its answer fit.
func (p *bufferPools) fit(b *ioBuffers, n int) *ioBuffers {
	if n > smallSize || hasLargeAnswer(headerOf(b.in).Opcode) {
		return b
	}
	small := p.small.Get().(*ioBuffers)
	copy(small.in, b.in[:n])
	b.put()
	return small
}

func (b *ioBuffers) put() { b.pool.Put(b) }

// initialize answers the first request, INIT, and returns the flags agreed on.
func (s *Session) initialize() (uint64, error) {
	b := s.buffers.get()
	defer b.put()
	n, err := s.readRequest(b.in)
	if err != nil {
		return 0, fmt.Errorf("read INIT: %w", err)
	}
	h := headerOf(b.in)
	if h.Opcode != opInit {
		return 0, fmt.Errorf("the first request is %s, want INIT", opcodeName(h.Opcode))
	}
	s.counts[opInit].Add(1)
	if err := s.bequeath(b.in[:n]); err != nil {
		return 0, fmt.Errorf("INIT: %w", err)
	}
	m, status := s.server.HandleRequest([][]byte{b.in[:n]}, [][]byte{b.out})
	if !status.Ok() {
		return 0, fmt.Errorf("INIT: %w", syscall.Errno(status))
	}
	if _, err := unix.Write(s.dev.fd, b.out[:m]); err != nil {
		return 0, fmt.Errorf("answer INIT: %w", err)
	}
	if st := (*gofuse.OutHeader)(unsafe.Pointer(&b.out[0])).Status; st != 0 {
		return 0, fmt.Errorf("INIT: the kernel's protocol is not understood: %w", syscall.Errno(-st))
	}
	return (*gofuse.InitOut)(unsafe.Pointer(&b.out[outHeaderSize])).Flags64(), nil
}

// serve reads requests and answers them until the connection ends or another one reads.
//
// Invariant: while the connection lives, somebody is reading, or answers a request and reads then, or is relieved.
func (s *Session) serve() {
	defer s.workers.Done()
	for s.joinReading() || s.rest() {
		b := s.buffers.get()
		n, err := s.readRequest(b.in)
		left := s.reading.Add(-1)
		if err != nil {
			b.put()
			s.relief.stop()
			s.relief.dismiss()
			s.connectionEnded(err)
			return
		}
		b = s.buffers.fit(b, n)
		h := headerOf(b.in)
		if h.Opcode < maxOpcode {
			s.counts[h.Opcode].Add(1)
		}
		if left == 0 {
			if waits(b.in) && s.relief.isWary() {
				s.readOn()
			} else {
				s.relief.taken()
			}
		}
		s.answer(b, n)
		b.put()
	}
}

// joinReading counts the caller among the readers, unless there are enough. A plain add and subtract would let others
// count on a reader that is about to leave.
func (s *Session) joinReading() bool {
	for {
		n := s.reading.Load()
		if n >= maxReading {
			return false
		}
		if s.reading.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// readRequest reads one request from the kernel.
func (s *Session) readRequest(b []byte) (int, error) {
	for {
		n, err := unix.Read(s.dev.fd, b)
		switch {
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOENT):
			continue // ENOENT: the caller was interrupted before we read its request
		case err != nil:
			return 0, err
		case n < inHeaderSize:
			return 0, fmt.Errorf("request of %d bytes, want %d at least: %w", n, inHeaderSize, syscall.EBADMSG)
		}
		return n, nil
	}
}

// connectionEnded tells a normal end from a broken one, which would leave applications waiting for ever.
func (s *Session) connectionEnded(err error) {
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ECONNABORTED) {
		return
	}
	s.logger.Error("read from the FUSE device: the mount is given up", "err", err)
	if err := s.dev.abort(); err != nil {
		s.logger.Error("abort of the FUSE connection", "err", err)
	}
}

// answer handles one request and writes the reply.
func (s *Session) answer(b *ioBuffers, n int) {
	h := headerOf(b.in)
	if errno := reservedName(b.in[:n]); errno != 0 && !s.polling.Load() {
		s.reply(h, errorReply(b.out, h.Unique, errno))
		return
	}
	m, status := s.server.HandleRequest([][]byte{b.in[:n]}, [][]byte{b.out})
	if !status.Ok() {
		s.logger.Error("malformed request", "op", opcodeName(h.Opcode), "size", n)
		m = len(errorReply(b.out, h.Unique, syscall.EIO))
	}
	if m > 0 {
		s.reply(h, b.out[:m])
		if opensFile(h.Opcode) {
			s.estate.answered(h.Unique)
		}
	}
}

func (s *Session) reply(h *gofuse.InHeader, out []byte) {
	_, err := unix.Write(s.dev.fd, out)
	switch {
	case err == nil, errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ECONNABORTED):
		// ENOENT: nobody waits for the answer any more.
	default:
		s.logger.Error("answer to the kernel", "op", opcodeName(h.Opcode), "node", h.NodeId, "size", len(out), "err", err)
	}
}

func headerOf(in []byte) *gofuse.InHeader { return (*gofuse.InHeader)(unsafe.Pointer(&in[0])) }

// errorReply writes the reply that carries only an errno.
func errorReply(out []byte, unique uint64, errno syscall.Errno) []byte {
	*(*gofuse.OutHeader)(unsafe.Pointer(&out[0])) = gofuse.OutHeader{Length: uint32(outHeaderSize), Status: -int32(errno), Unique: unique}
	return out[:outHeaderSize]
}

func stack() []byte { return debug.Stack() }
