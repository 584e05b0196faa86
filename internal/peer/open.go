package peer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"github.com/litefs/litefs/sqlitefile"
	"golang.org/x/sys/unix"
)

func (p *Peer) open(ctx context.Context) error {
	flag := os.O_RDWR | os.O_CREATE
	if p.opt.locksOnly {
		flag = os.O_RDWR
	}
	var err error
	if p.db, err = p.openFile("", flag, 0o644); err != nil {
		return err
	}
	if err := p.lockDatabase(ctx); err != nil {
		return err
	}
	if err := p.keep(p.db); err != nil {
		return err
	}
	// From here on nobody removes the -wal: that takes EXCLUSIVE.
	size, hdr, err := p.databaseHeader()
	if err != nil {
		return err
	}
	hasWAL, err := notEmpty(p.opt.realPath() + "-wal")
	if err != nil {
		return err
	}
	switch {
	case p.opt.locksOnly && !hasWAL && (hdr.err != nil || !hdr.IsWAL()):
		return nil // who writes takes RESERVED, and who would make a WAL needs EXCLUSIVE
	case size == 0:
		return nil // the WAL is made with the first transaction
	case hdr.unfinished && !hasWAL:
		return p.dropUnfinished(ctx)
	case hdr.err != nil && !hasWAL:
		return hdr.err
	case hdr.err == nil && !hdr.IsWAL() && !hasWAL:
		if err := p.lockExclusive(ctx); err != nil {
			return err
		}
		return errors.Join(p.openWAL(ctx, hdr, size), p.toShared())
	}
	return p.openWAL(ctx, hdr, size)
}

// fileHeader is what the database file says of itself.
type fileHeader struct {
	sqlitefile.Header
	err        error // no header: sqlitefile.ErrNotDatabase
	unfinished bool  // the first transaction was not finished; see applyFirst
}

func (p *Peer) databaseHeader() (size int64, hdr fileHeader, err error) {
	fi, err := p.db.Stat()
	if err != nil {
		return 0, fileHeader{}, err
	}
	var b [sqlitefile.HeaderSize]byte
	n, err := readAtMost(p.db, b[:], 0)
	if err != nil {
		return 0, fileHeader{}, err
	}
	hdr.Header, hdr.err = sqlitefile.ParseHeader(b[:n])
	hdr.unfinished = b == [sqlitefile.HeaderSize]byte{}
	return fi.Size(), hdr, nil
}

// dropUnfinished empties a database file whose first transaction was not
// finished.
func (p *Peer) dropUnfinished(ctx context.Context) error {
	p.opt.Logger.Warn("database file has no header: its first transaction was not finished, starting over", "path", p.opt.Path)
	if err := p.lockExclusive(ctx); err != nil {
		return err
	}
	return errors.Join(p.db.Truncate(0), p.toShared())
}

// openWAL opens -wal and -shm of a database that is not empty, creates them
// when absent, takes DMS and WRITE and readies the wal-index. The caller has
// seen to it that no reader is in rollback mode.
func (p *Peer) openWAL(ctx context.Context, hdr fileHeader, size int64) (err error) {
	p.wal, p.index = &walFile{}, &walIndex{}
	if p.wal.f, err = p.openBeside("-wal"); err != nil {
		return err
	}
	if p.index.f, err = p.openBeside("-shm"); err != nil {
		return err
	}
	if err := p.lockDMS(ctx); err != nil {
		return err
	}
	if err := pollEvery(ctx, p.opt.pause, "local writers to end", func() (bool, error) {
		return setLock(p.index.f, exclusive, sqlitefile.WALWriteLock, 1)
	}); err != nil {
		return err
	}
	if err := p.keep(p.index.f); err != nil {
		return err
	}
	return p.readyIndex(ctx, hdr, size)
}

// readyIndex makes memory and wal-index tell the newest commit. WRITE is held.
func (p *Peer) readyIndex(ctx context.Context, hdr fileHeader, size int64) error {
	adopted, err := p.adoptIndex(hdr)
	if err != nil {
		return err
	}
	if !adopted {
		if err := p.recoverIndex(ctx, hdr); err != nil {
			return err
		}
	}
	p.pageSize = p.wal.hdr.PageSize
	p.setPosition()
	if p.index.hdr.PageCount == 0 {
		p.pageCount.Store(hdr.Pages(size))
	}
	return p.ensureHeader()
}

// setPosition tells the readers of PageCount and WALSize what the header says.
func (p *Peer) setPosition() {
	h := p.index.hdr
	if h.PageCount != 0 {
		p.pageCount.Store(h.PageCount)
	}
	p.walSize.Store(sqlitefile.FrameOffset(h.MaxFrame+1, p.pageSize))
}

// ensureHeader gives a -wal that is empty a header: an empty one counts as
// absent.
func (p *Peer) ensureHeader() error {
	fi, err := p.wal.f.Stat()
	if err != nil || fi.Size() > 0 {
		return err
	}
	return p.wal.putHeader(false)
}

// openBeside opens the file with the suffix, with mode and owner of the
// database: the applications need not run as our user (os_unix.c,
// findCreateFileMode).
func (p *Peer) openBeside(suffix string) (*file, error) {
	fi, err := p.db.Stat()
	if err != nil {
		return nil, err
	}
	f, err := p.openFile(suffix, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if f, err = p.openFile(suffix, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fi.Mode().Perm()); err != nil {
		return nil, err
	}
	if err := p.likeDatabase(f, fi.Mode().Perm()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (p *Peer) likeDatabase(f *file, mode fs.FileMode) error {
	if err := f.Chmod(mode); err != nil { // the umask may have taken bits away
		return err
	}
	var db, own unix.Stat_t
	if err := errors.Join(unix.Fstat(int(p.db.Fd()), &db), unix.Fstat(int(f.Fd()), &own)); err != nil {
		return err
	}
	if own.Uid == db.Uid && own.Gid == db.Gid || os.Geteuid() != 0 {
		return nil
	}
	return f.Chown(int(db.Uid), int(db.Gid))
}

// lockDMS takes the dead man switch, shared, and as the first one truncates the
// wal-index: nobody else maps it, and what it says is from before a crash
// (os_unix.c, unixLockSharedMemory; 3 bytes there too).
func (p *Peer) lockDMS(ctx context.Context) error {
	f := p.index.f
	return poll(ctx, "the first opener of the wal-index", func() (bool, error) {
		first, err := setLock(f, exclusive, sqlitefile.WALDMSLock, 1)
		if err != nil {
			return false, err
		}
		if first {
			if err := f.Truncate(3); err != nil {
				return false, err
			}
		}
		return setLock(f, shared, sqlitefile.WALDMSLock, 1)
	})
}

// adoptIndex takes the wal-index as it is, when it is right. It must not be
// rebuilt then: the WAL may end with a commit whose writer died before it was
// published, which readers have not seen, and which the log of transactions
// does not know.
func (p *Peer) adoptIndex(db fileHeader) (bool, error) {
	var b [sqlitefile.CkptInfoOffset]byte
	n, err := readAtMost(p.index.f, b[:], 0)
	if err != nil {
		return false, err
	}
	h, ok := sqlitefile.ParseIndexHeader(b[:n])
	if !ok {
		return false, nil
	}
	s, err := scanWAL(p.wal.f, h.MaxFrame)
	if err != nil {
		return false, err
	}
	info, err := p.index.info()
	if err != nil {
		return false, err
	}
	if info.Backfill > h.MaxFrame {
		// SQLite restarts a WAL in two steps, and died between them.
		return false, nil
	}
	if h.MaxFrame > 0 {
		if s.frames() != h.MaxFrame || s.cksum != h.FrameCksum || s.hdr.Salt1 != h.Salt1 || s.hdr.Salt2 != h.Salt2 || s.hdr.PageSize != h.PageSize {
			p.opt.Logger.Warn("wal-index does not fit the WAL, recovering it", "path", p.opt.Path,
				"index_frames", h.MaxFrame, "wal_frames", s.frames())
			return false, nil
		}
		p.wal.hdr, p.wal.written = s.hdr, true
	} else if err := p.emptyWAL(s, db, h.Salt1, h.Salt2); err != nil {
		return false, err
	}
	p.index.hdr = h
	if err := p.index.load(s.pgnos); err != nil {
		return false, err
	}
	// A writer that died left entries of frames that do not exist.
	return true, p.index.flush()
}

// emptyWAL readies a WAL without frames for the first one, under the given
// salts.
func (p *Peer) emptyWAL(s walScan, db fileHeader, salt1, salt2 uint32) error {
	if db.err != nil {
		return db.err // the page size is not known
	}
	p.wal.hdr = sqlitefile.WALHeader{
		BigEndian: nativeBigEndian(),
		Version:   sqlitefile.WALVersion,
		PageSize:  db.PageSize,
		Seq:       s.hdr.Seq + 1,
		Salt1:     salt1,
		Salt2:     salt2,
	}
	p.wal.written = false
	return nil
}

// recoverIndex rebuilds the wal-index from the WAL, up to the last commit that
// the checksum chain proves (wal.c, walIndexRecover).
func (p *Peer) recoverIndex(ctx context.Context, db fileHeader) (err error) {
	const first, n = sqlitefile.WALCkptLock, sqlitefile.WALReadLock0 - sqlitefile.WALCkptLock
	if err := poll(ctx, "a checkpoint to end", func() (bool, error) {
		return setLock(p.index.f, exclusive, first, n)
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock(p.index.f, first, n)) }()

	s, err := scanWAL(p.wal.f, math.MaxUint32)
	if err != nil {
		return err
	}
	if s.frames() > 0 {
		p.wal.hdr, p.wal.written = s.hdr, true
	} else {
		salt1, salt2, err := newSalts(s)
		if err != nil {
			return err
		}
		if err := p.emptyWAL(s, db, salt1, salt2); err != nil {
			return err
		}
	}
	p.index.hdr = sqlitefile.IndexHeader{
		BigEndianCksum: p.wal.hdr.BigEndian,
		MaxFrame:       s.frames(),
		PageCount:      s.pageCount,
		FrameCksum:     s.cksum,
		Salt1:          p.wal.hdr.Salt1,
		Salt2:          p.wal.hdr.Salt2,
	}
	if s.frames() > 0 {
		p.index.hdr.PageSize = s.hdr.PageSize
	}
	if err := p.index.load(s.pgnos); err != nil {
		return err
	}
	// Before the header: a backfill count from before the crash would let
	// readers skip frames. Readers may be there: only what they read was lost,
	// so marks that they hold stay.
	err = p.index.resetInfo(s.frames(), func(i int, frame uint32) error {
		_, err := p.index.setFreeMark(i, frame)
		return err
	})
	if err != nil {
		return err
	}
	return p.index.flush()
}

// newSalts are those of a WAL that continues after the one that was scanned:
// the first counts up, so that frames of the old one never count as frames of
// the new one; the second is random.
func newSalts(s walScan) (salt1, salt2 uint32, err error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, 0, fmt.Errorf("draw salts: %w", err)
	}
	salt1, salt2 = binary.NativeEndian.Uint32(b[:]), binary.NativeEndian.Uint32(b[4:])
	if s.valid {
		salt1 = s.hdr.Salt1 + 1
	}
	return salt1, salt2, nil
}

// notEmpty says whether the file is there and has content, which is when SQLite
// says that it exists.
func notEmpty(name string) (bool, error) {
	fi, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && fi.Size() > 0, err
}

// nativeBigEndian: checksums are summed in the machine's order, as SQLite does,
// because it is the faster one.
func nativeBigEndian() bool {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], 1)
	return b[1] == 1
}
