// Package pagesum keeps the checksums of all pages of one database in a mapped
// file, and the rolling checksum of the database with them.
//
// Reading a sum is a load from memory, changing one a store, and the rolling
// checksum follows each store, so a transaction costs O(pages changed) whatever
// the size of the database. The file outlives the process: after a clean stop,
// or after the process alone died, nothing of the database is read again.
//
//	+---------------------+ 0
//	| header slot 0       | the valid slot with the higher sequence counts
//	+---------------------+ 512
//	| header slot 1       |
//	+---------------------+ 4096
//	| sum of page 1 (8 B) | little-endian, 0 = none
//	| sum of page 2       |
//	| ...                 | zero beyond the page count
//	+---------------------+
//
// What a crash leaves. Stores to the mapping belong to the kernel, so they
// survive the death of the process: the stamp then names the last transaction
// all of whose sums are set, and the sums of the one in progress may be there
// in part; setting that transaction's pages again makes them right. After a
// power cut any part of the stores may be missing: the stamp is neither clean
// nor of this boot, and the caller has to verify against the database (Compute).
//
// Left to the caller: which transaction the sums belong to (Mark), and whether
// the database agrees.
package pagesum

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"sync/atomic"

	"github.com/superfly/ltx"
	"golang.org/x/sys/unix"
)

var (
	// ErrCorrupt says that the file is no page checksum file, or a damaged one.
	// The cure is to remove it and compute the sums from the database.
	ErrCorrupt = errors.New("not a page checksum file")

	// ErrVersion says that the file was written by another version.
	ErrVersion = errors.New("unknown version of page checksum file")

	// ErrClosed is returned by changes to a closed file.
	ErrClosed = errors.New("page checksum file is closed")
)

// Stamp tells how far the sums found at Open can be trusted.
type Stamp struct {
	TXID     uint64 // last transaction given to Mark; 0 = none
	Clean    bool   // closed clean: the sums are exactly those of TXID
	SameBoot bool   // written since the machine started: nothing was lost, but a transaction after TXID may be set in part
}

const (
	dataOffset = 4096    // where the sums begin; also the unit of the header's msync
	extentSize = 1 << 20 // the file grows by at least this, or by half its size
	sumSize    = 8
)

// File holds the page checksums of one database. One goroutine changes it,
// any number may read meanwhile.
type File struct {
	path   string
	bootID string
	found  Stamp

	sum atomic.Uint64 // XOR of sums 1..count, with ltx.ChecksumFlag set

	mu struct {
		sync.RWMutex // held for writing by whoever changes anything below or remaps
		f            *os.File
		data         []byte // the mapping of the whole file; nil once closed
		hdr          header // newest header in the file
		lockPgno     uint32 // never has a sum
		dirty        bool   // the header on disk says "not clean": stores are allowed
	}
}

// Open maps the file at path and creates it when absent. bootID names the boot
// of this machine (at most 64 bytes); it decides Stamp.SameBoot. Errors:
// ErrCorrupt, ErrVersion, or of the file system.
func Open(path string, bootID string) (*File, error) {
	if len(bootID) > maxBootID {
		return nil, fmt.Errorf("open page checksums %s: boot id has %d bytes, want at most %d", path, len(bootID), maxBootID)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open page checksums: %w", err)
	}
	p := &File{path: path, bootID: bootID}
	p.mu.f = f
	if err := p.load(); err != nil {
		return nil, fmt.Errorf("open page checksums %s: %w", path, errors.Join(err, p.unmapLocked(), f.Close()))
	}
	return p, nil
}

func (p *File) load() error {
	fi, err := p.mu.f.Stat()
	if err != nil {
		return err
	}
	size := fi.Size()
	if size > 0 && size < dataOffset {
		return fmt.Errorf("%w: %d bytes, want at least %d", ErrCorrupt, size, dataOffset)
	}
	if size == 0 {
		// Nothing but the header page: a database of a few pages must not cost
		// a whole extent before its first sum.
		if size, err = allocate(p.mu.f, 0, dataOffset); err != nil {
			return err
		}
	} else if err := fillHoles(p.mu.f, size); err != nil {
		return err
	}
	if err := p.mapLocked(size); err != nil {
		return err
	}
	hdr, err := newestHeader(p.mu.data)
	if err != nil {
		return err
	}
	if need := dataOffset + sumSize*int64(hdr.count); size < need {
		return fmt.Errorf("%w: %d bytes, want at least %d for %d pages", ErrCorrupt, size, need, hdr.count)
	}
	p.found = Stamp{TXID: hdr.txid, Clean: hdr.clean, SameBoot: hdr.seq != 0 && hdr.bootID == p.bootID}
	p.setHeaderLocked(hdr)
	// A crash between the header and the stores of a shrink leaves old sums
	// behind the count; they must not come back when the database grows.
	end := dataOffset + sumSize*int64(hdr.count)
	zeroTail(p.mu.data[end:])
	p.sum.Store(uint64(ltx.ChecksumFlag) | xorAll(p.mu.data[dataOffset:end]))
	return nil
}

// Stamp returns what Open found in the file.
func (p *File) Stamp() Stamp { return p.found }

// PageSize returns the page size of the database in bytes, 0 when none was set.
func (p *File) PageSize() uint32 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.mu.hdr.pageSize
}

// Count returns the number of pages of the database.
func (p *File) Count() uint32 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.mu.hdr.count
}

// Sum returns the rolling checksum of the database: ltx.ChecksumFlag | XOR of
// the sums of all pages. O(1).
func (p *File) Sum() uint64 { return p.sum.Load() }

// Get returns the checksum of a page as ltx.ChecksumPage computes it; 0 when
// there is none: the lock page, a page beyond Count or never set, a closed file.
func (p *File) Get(pgno uint32) uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.getLocked(pgno)
}

func (p *File) getLocked(pgno uint32) uint64 {
	if p.mu.data == nil || pgno == 0 || pgno > p.mu.hdr.count {
		return 0
	}
	return binary.LittleEndian.Uint64(p.mu.data[sumOffset(pgno):])
}

// Recount adds the sums up anew. The rolling checksum follows each store, and so
// it is wrong for good once a sum was changed by anybody else: a bad memory, a
// bad disk.
func (p *File) Recount() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.data == nil {
		return fmt.Errorf("page checksums %s: %w", p.path, ErrClosed)
	}
	end := dataOffset + sumSize*int64(p.mu.hdr.count)
	p.sum.Store(uint64(ltx.ChecksumFlag) | xorAll(p.mu.data[dataOffset:end]))
	return nil
}

// All returns the page size in bytes and a copy of all sums, that of page 1
// first; 0 for a page without one.
func (p *File) All() (pageSize uint32, sums []uint64) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	sums = make([]uint64, p.mu.hdr.count)
	for i := range sums {
		sums[i] = p.getLocked(uint32(i + 1))
	}
	return p.mu.hdr.pageSize, sums
}

// SumAfter returns what Sum would be after the changes (page number and new
// sum, each page at most once) and a resize to count, and changes nothing.
// Changes beyond count and of the lock page are ignored, as Set and Resize
// would. O(changes + pages dropped).
func (p *File) SumAfter(changes iter.Seq2[uint32, uint64], count uint32) uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	sum := p.sum.Load()
	for pgno := count; pgno < p.mu.hdr.count; pgno++ {
		sum ^= p.getLocked(pgno + 1)
	}
	for pgno, s := range changes {
		if pgno != 0 && pgno <= count && pgno != p.mu.lockPgno {
			sum ^= p.getLocked(pgno) ^ s
		}
	}
	return uint64(ltx.ChecksumFlag) | sum
}

// SetPageSize sets the page size in bytes. Changing it drops all sums.
func (p *File) SetPageSize(pageSize uint32) error {
	if pageSize < 512 || pageSize > 65536 || pageSize&(pageSize-1) != 0 {
		return fmt.Errorf("page checksums %s: page size %d is no power of two from 512 to 65536", p.path, pageSize)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.hdr.pageSize == pageSize {
		return nil
	}
	if err := p.changeLocked(); err != nil {
		return err
	}
	if err := p.resizeLocked(0); err != nil {
		return err
	}
	hdr := p.mu.hdr
	hdr.pageSize = pageSize
	p.putHeaderLocked(hdr)
	return nil
}

// Set stores the checksum of a page and grows the database to it when it lies
// beyond Count. The sum of the lock page is not stored. A full disk is an error
// and leaves everything as it was.
func (p *File) Set(pgno uint32, sum uint64) error {
	if pgno == 0 {
		return fmt.Errorf("page checksums %s: page number 0", p.path)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.changeLocked(); err != nil {
		return err
	}
	if p.mu.hdr.pageSize == 0 {
		return fmt.Errorf("page checksums %s: set page %d: no page size was set", p.path, pgno)
	}
	if pgno > p.mu.hdr.count {
		if err := p.resizeLocked(pgno); err != nil {
			return err
		}
	}
	if pgno == p.mu.lockPgno {
		return nil
	}
	at := p.mu.data[sumOffset(pgno):]
	old := binary.LittleEndian.Uint64(at)
	binary.LittleEndian.PutUint64(at, sum)
	p.addLocked(old ^ sum)
	return nil
}

// Resize sets the number of pages of the database. Sums of pages beyond it are
// dropped, pages that come into being have none.
func (p *File) Resize(count uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if count == p.mu.hdr.count && p.mu.data != nil {
		return nil
	}
	if err := p.changeLocked(); err != nil {
		return err
	}
	return p.resizeLocked(count)
}

// resizeLocked writes the new count BEFORE it zeroes what was dropped: a crash
// between the two leaves old sums behind the count, which Open clears. The
// other order would leave zeroes within the count.
func (p *File) resizeLocked(count uint32) error {
	hdr := p.mu.hdr
	old := hdr.count
	if count > old {
		if err := p.growLocked(dataOffset + sumSize*int64(count)); err != nil {
			return fmt.Errorf("page checksums %s: grow to %d pages: %w", p.path, count, err)
		}
	}
	hdr.count = count
	p.putHeaderLocked(hdr)
	if count < old {
		dropped := p.mu.data[sumOffset(count+1) : dataOffset+sumSize*int64(old)]
		p.addLocked(xorAll(dropped))
		clear(dropped)
	}
	return nil
}

// Mark says that all sums of transaction txid are set.
func (p *File) Mark(txid uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.changeLocked(); err != nil {
		return err
	}
	hdr := p.mu.hdr
	hdr.txid = txid
	p.putHeaderLocked(hdr)
	return nil
}

// changeLocked stands before every change: the first one takes the clean mark
// off the disk, durably. A power cut would otherwise find a clean mark beside
// sums that were stored after it.
func (p *File) changeLocked() error {
	if p.mu.data == nil {
		return fmt.Errorf("page checksums %s: %w", p.path, ErrClosed)
	}
	if p.mu.dirty {
		return nil
	}
	hdr := p.mu.hdr
	wasClean := hdr.clean
	hdr.clean = false
	hdr.bootID = p.bootID
	p.putHeaderLocked(hdr)
	if wasClean {
		if err := unix.Msync(p.mu.data[:dataOffset], unix.MS_SYNC); err != nil {
			return fmt.Errorf("page checksums %s: msync header: %w", p.path, err)
		}
	}
	p.mu.dirty = true
	return nil
}

// Close unmaps the file. With clean it first makes all sums durable, then the
// clean mark: the next Open may trust them for the transaction last marked.
// Closing twice does nothing.
func (p *File) Close(clean bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.data == nil {
		return nil
	}
	var err error
	if clean && !p.mu.hdr.clean {
		err = p.markCleanLocked()
	}
	if err := errors.Join(err, p.unmapLocked(), p.mu.f.Close()); err != nil {
		return fmt.Errorf("close page checksums %s: %w", p.path, err)
	}
	return nil
}

func (p *File) markCleanLocked() error {
	if err := unix.Msync(p.mu.data, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	hdr := p.mu.hdr
	hdr.clean = true
	hdr.bootID = p.bootID
	p.putHeaderLocked(hdr)
	if err := unix.Msync(p.mu.data[:dataOffset], unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync header: %w", err)
	}
	return nil
}

// putHeaderLocked writes hdr to the slot that does not hold the newest header,
// so that a crash in the middle leaves the old one.
func (p *File) putHeaderLocked(hdr header) {
	hdr.seq++
	hdr.encode(p.mu.data[slotOffset(hdr.seq):])
	p.setHeaderLocked(hdr)
}

func (p *File) setHeaderLocked(hdr header) {
	p.mu.hdr = hdr
	p.mu.lockPgno = 0
	if hdr.pageSize != 0 {
		p.mu.lockPgno = ltx.LockPgno(hdr.pageSize)
	}
}

// addLocked takes the XOR of what came and what went into the rolling checksum.
// The flag is set last: an even number of sums cancels it.
func (p *File) addLocked(x uint64) {
	p.sum.Store(uint64(ltx.ChecksumFlag) | (p.sum.Load() ^ x))
}

func sumOffset(pgno uint32) int64 { return dataOffset + sumSize*int64(pgno-1) }

func xorAll(b []byte) (x uint64) {
	for ; len(b) >= sumSize; b = b[sumSize:] {
		x ^= binary.LittleEndian.Uint64(b)
	}
	return x
}
