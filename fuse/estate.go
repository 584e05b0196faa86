package fuse

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Keeper holds copies of descriptors in another process, so that they outlive this one. A copy that Keep has returned
// for is safe from the end of this process. Names are chosen by the caller.
type Keeper interface {
	// Keep gives a copy of fd. One that is held under the name already is replaced.
	Keep(name string, fd int) error
	// Drop lets go of a copy, if there is one.
	Drop(name string) error
	// Kept returns what the process before this one left under a name; the caller owns it, and gets it once.
	Kept(name string) (fd int, ok bool)
	// Names lists what is held.
	Names() []string
}

// Names of what a session keeps.
const (
	keptDevice = "fuse.device"
	keptEstate = "fuse.estate"
	keptNode   = "fuse.node." // + nodeid: a file that is open and has lost its name
)

// estate is what a session leaves to the one that takes its mount over: memory that is shared with the Keeper's process
// and so survives a kill at any instruction. Everything else about a mount is either in the kernel or can be read from
// the tree (see docs/guardian.md).
//
// A nil estate is that of a session nobody takes over: it records nothing.
type estate struct {
	fd   int
	mem  []byte
	head *estateHead

	mu      sync.Mutex
	slots   []slot
	free    []uint32          // cleared slots below last
	last    uint32            // slots from here on were never used
	pending map[uint64]uint32 // request that opened a handle and is not answered yet -> slot
}

// estateHead is the first page of the estate.
type estateHead struct {
	magic      uint64
	generation uint32 // sessions so far; part of their handles' numbers
	backing    int32  // the newest id of a file registered for Passthrough
	minor      uint32 // device number of the mount
	live       uint32 // liveXxx
	initSize   uint32
	init       [1024]byte // the kernel's INIT request
}

const (
	estateMagic = 0x6c66_7301 // the layout's version is its last byte

	liveHelper      = 1 << 0 // mounted by fusermount3
	livePassthrough = 1 << 1
)

// slot is an open handle of a file. used is written last when a slot is filled and first when it is cleared.
type slot struct {
	fh      uint64
	node    uint64
	request uint64 // the one that opened it, until its answer is written
	backing int32  // id registered with the kernel; 0: none
	used    uint32 // slotXxx; 0: the slot is free
}

const (
	slotUsed        = 1 << 0
	slotPassthrough = 1 << 1
	slotDirect      = 1 << 2
	slotSized       = 1 << 3 // the size of the file was set since its first open
)

const (
	estateSlots = 1 << 18
	headSize    = 4096
	estateSize  = headSize + estateSlots*int(unsafe.Sizeof(slot{})) // sparse: only what was used takes memory
)

// errHandles is returned when no more handles fit into the estate.
var errHandles = fmt.Errorf("more than %d files are open: %w", estateSlots, syscall.ENFILE)

// newEstate makes an empty estate.
func newEstate() (*estate, error) {
	fd, err := unix.MemfdCreate("litefs-mount", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the next daemon: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(estateSize)); err != nil {
		return nil, errors.Join(fmt.Errorf("memory for the next daemon: %w", err), unix.Close(fd))
	}
	e, err := mapEstate(fd)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	e.head.magic = estateMagic
	return e, nil
}

// mapEstate maps the memory behind fd, and owns fd when it succeeds.
func mapEstate(fd int) (*estate, error) {
	mem, err := unix.Mmap(fd, 0, estateSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory for the next daemon: %w", err)
	}
	return &estate{
		fd:      fd,
		mem:     mem,
		head:    (*estateHead)(unsafe.Pointer(&mem[0])),
		slots:   unsafe.Slice((*slot)(unsafe.Pointer(&mem[headSize])), estateSlots),
		pending: make(map[uint64]uint32),
	}, nil
}

// openEstate maps what the daemon before has left.
func openEstate(fd int) (*estate, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("memory of the daemon before: %w", err)
	}
	if st.Size != int64(estateSize) {
		return nil, fmt.Errorf("memory of the daemon before: %d bytes, want %d: it is of another version", st.Size, estateSize)
	}
	e, err := mapEstate(fd)
	if err != nil {
		return nil, err
	}
	if e.head.magic != estateMagic {
		return nil, errors.Join(fmt.Errorf("memory of the daemon before: version %x, want %x", e.head.magic, uint64(estateMagic)), unix.Munmap(e.mem))
	}
	if int(e.head.initSize) > len(e.head.init) {
		return nil, errors.Join(fmt.Errorf("memory of the daemon before: INIT of %d bytes", e.head.initSize), unix.Munmap(e.mem))
	}
	return e, nil
}

func (e *estate) close() error {
	if e == nil {
		return nil
	}
	return errors.Join(unix.Munmap(e.mem), unix.Close(e.fd))
}

// begun counts a new session.
func (e *estate) begun() { e.head.generation++ }

// firstHandle is the number that the session's handles count from: no two sessions give one number.
func (e *estate) firstHandle() uint64 {
	if e == nil {
		return 0
	}
	return uint64(e.head.generation&0xffff) << 44
}

// inherited calls f for every handle that was open, by slot.
func (e *estate) inherited(f func(i uint32, s *slot)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = 0
	for i := range e.slots {
		s := &e.slots[i]
		if s.fh == 0 {
			break // slots are used from the first one on
		}
		e.last = uint32(i) + 1
		if atomic.LoadUint32(&s.used) == 0 {
			e.free = append(e.free, uint32(i))
			continue
		}
		if s.request != 0 {
			e.pending[s.request] = uint32(i)
		}
		f(uint32(i), s)
	}
}

// noSlot is the slot of a handle that is not recorded.
const noSlot = ^uint32(0)

// opened records a handle before the request that opens it is answered.
func (e *estate) opened(request, fh, node uint64, mode Mode, backing int32, sized bool) (uint32, error) {
	if e == nil {
		return noSlot, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var i uint32
	switch n := len(e.free); {
	case n > 0:
		i = e.free[n-1]
		e.free = e.free[:n-1]
	case e.last < estateSlots:
		i = e.last
		e.last++
	default:
		return noSlot, errHandles
	}
	used := uint32(slotUsed)
	switch mode {
	case Passthrough:
		used |= slotPassthrough
	case Direct:
		used |= slotDirect
	}
	if sized {
		used |= slotSized
	}
	s := &e.slots[i]
	s.node, s.request, s.backing = node, request&^resent, backing
	atomic.StoreUint64(&s.fh, fh)
	atomic.StoreUint32(&s.used, used)
	e.pending[s.request] = i
	return i, nil
}

// answered notes that the kernel has the answer to a request that opened a handle.
func (e *estate) answered(request uint64) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	request &^= resent
	if i, ok := e.pending[request]; ok {
		delete(e.pending, request)
		atomic.StoreUint64(&e.slots[i].request, 0)
	}
}

// unanswered returns the handle that a request has opened for an answer which the kernel never got.
func (e *estate) unanswered(request uint64) (fh uint64, ok bool) {
	if e == nil {
		return 0, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	i, ok := e.pending[request&^resent]
	if !ok {
		return 0, false
	}
	return e.slots[i].fh, true
}

// sized notes that the size of a handle's file was set.
func (e *estate) sized(i uint32) {
	if e != nil && i != noSlot {
		atomic.OrUint32(&e.slots[i].used, slotSized)
	}
}

// closed forgets a handle.
func (e *estate) closed(i uint32) {
	if e == nil || i == noSlot {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &e.slots[i]
	atomic.StoreUint32(&s.used, 0)
	delete(e.pending, s.request)
	e.free = append(e.free, i)
}

// registered notes the id of a file that the kernel has taken for Passthrough.
func (e *estate) registered(id int32) {
	if e != nil {
		atomic.StoreInt32(&e.head.backing, id)
	}
}
