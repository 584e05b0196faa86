package peer

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/litefs/litefs/sqlitefile"
)

// walIndex is the -shm. The Peer holds WRITE, so nobody else changes the header
// or the hash tables: the copy in memory is right, and what it says is written
// to the file. The checkpoint information belongs to readers and checkpointers
// of all processes and is read from the file each time.
type walIndex struct {
	f      *file
	hdr    sqlitefile.IndexHeader
	blocks []sqlitefile.IndexBlock // those that hold frames 1..hdr.MaxFrame, 8 bytes a frame
	// dirty says that a write to the file failed, so that it may differ from
	// memory. Memory is never taken back: readers may have seen the new header.
	dirty bool
	// shut: nobody is to begin to read, and there is no header in the file. See Peer.RefuseReads.
	shut bool
}

func (x *walIndex) file() *file {
	if x == nil {
		return nil
	}
	return x.f
}

// load fills the tables with the pages of frames 1.. .
func (x *walIndex) load(pgnos []uint32) error {
	x.blocks = nil
	for i, pgno := range pgnos {
		if _, err := x.add(uint32(i)+1, pgno); err != nil {
			return err
		}
	}
	return nil
}

func (x *walIndex) add(frame, pgno uint32) (slot uint32, err error) {
	n := sqlitefile.BlockOf(frame)
	if int(n) == len(x.blocks) {
		x.blocks = append(x.blocks, sqlitefile.NewIndexBlock(n))
	}
	return x.blocks[n].Add(frame, pgno)
}

// find returns the newest frame of a page, 0 when it is not in the WAL.
func (x *walIndex) find(pgno uint32) (uint32, error) {
	for i := len(x.blocks) - 1; i >= 0; i-- {
		if frame, err := x.blocks[i].Find(pgno, 1, x.hdr.MaxFrame); frame != 0 || err != nil {
			return frame, err
		}
	}
	return 0, nil
}

func (x *walIndex) pgno(frame uint32) uint32 {
	return x.blocks[sqlitefile.BlockOf(frame)].Pgno(frame)
}

// commit makes the transaction visible whose frames follow hdr.MaxFrame: the
// tables first, then the header. After an error it is made visible by the next
// flush.
func (x *walIndex) commit(pgnos []uint32, pageSize, pageCount uint32, cksum sqlitefile.Cksum) error {
	first := x.hdr.MaxFrame + 1
	slots := make([]uint32, len(pgnos))
	for i, pgno := range pgnos {
		var err error
		if slots[i], err = x.add(first+uint32(i), pgno); err != nil {
			return err
		}
	}
	x.hdr.PageSize = pageSize
	x.hdr.MaxFrame += uint32(len(pgnos))
	x.hdr.PageCount = pageCount
	x.hdr.FrameCksum = cksum
	x.hdr.Change++
	if x.dirty {
		return x.flush()
	}
	x.dirty = true
	for len(pgnos) > 0 {
		n := min(len(pgnos), int(sqlitefile.BlockZero(sqlitefile.BlockOf(first)+1)-first+1))
		if err := x.putEntries(first, slots[:n]); err != nil {
			return err
		}
		first, pgnos, slots = first+uint32(n), pgnos[n:], slots[n:]
	}
	if err := x.putHeader(); err != nil {
		return err
	}
	x.dirty = false
	return nil
}

// manySlots is from how many entries on it is cheaper to write all slots of a
// block. Writing bytes over themselves disturbs no reader.
const manySlots = 12

// putEntries writes the entries of frames from first on, all in one block.
func (x *walIndex) putEntries(first uint32, slots []uint32) error {
	n := sqlitefile.BlockOf(first)
	b := x.blocks[n]
	if first == sqlitefile.BlockZero(n)+1 {
		// The first entry of a block: whatever a writer before a restart left
		// there goes (wal.c, walIndexAppend).
		return x.putBlock(b)
	}
	// Page numbers before slots: a reader follows a slot to its page number.
	if err := x.putPart(b, sqlitefile.PgnoOffset(first), 4*int64(len(slots))); err != nil {
		return err
	}
	if len(slots) >= manySlots {
		from := sqlitefile.SlotOffset(n, 0)
		return x.putPart(b, from, sqlitefile.BlockOffset(n+1)-from)
	}
	for _, slot := range slots {
		if err := x.putPart(b, sqlitefile.SlotOffset(n, slot), 2); err != nil {
			return err
		}
	}
	return nil
}

// putBlock writes a block as a whole, without the headers in front of block 0.
func (x *walIndex) putBlock(b sqlitefile.IndexBlock) error {
	from := sqlitefile.PgnoOffset(sqlitefile.BlockZero(b.Number) + 1)
	return x.putPart(b, from, sqlitefile.BlockOffset(b.Number+1)-from)
}

// putPart writes n bytes of a block, given by their offset in the file.
func (x *walIndex) putPart(b sqlitefile.IndexBlock, at, n int64) error {
	from := at - sqlitefile.BlockOffset(b.Number)
	return x.put(b.Bytes[from:from+n], at)
}

func (x *walIndex) put(b []byte, at int64) error {
	if _, err := x.f.WriteAt(b, at); err != nil {
		return fmt.Errorf("write wal-index: %w", err)
	}
	return nil
}

// putHeader publishes the header: the second copy first, since readers take the
// first one first. Two writes, not one: the kernel copies upwards.
func (x *walIndex) putHeader() error {
	if x.shut {
		return nil // reopen writes it
	}
	x.hdr.IsInit = true
	x.hdr.Version = sqlitefile.WALVersion
	var b [sqlitefile.IndexHeaderSize]byte
	x.hdr.Encode(b[:])
	if err := x.put(b[:], sqlitefile.IndexHeaderSize); err != nil {
		return err
	}
	err := x.put(b[:], 0)
	if err != nil {
		// While the copies differ no reader can begin, so a second attempt is
		// made at once and not with the next transaction.
		err = x.put(b[:], 0)
	}
	return err
}

// flush writes everything that memory says. It is safe beside readers: entries
// they may use are written over themselves, others go.
func (x *walIndex) flush() error {
	x.dirty = true
	if len(x.blocks) == 0 {
		// Readers map the first block as a whole.
		if err := x.putBlock(sqlitefile.NewIndexBlock(0)); err != nil {
			return err
		}
	}
	for _, b := range x.blocks {
		if err := x.putBlock(b); err != nil {
			return err
		}
	}
	if err := x.putHeader(); err != nil {
		return err
	}
	x.dirty = false
	return nil
}

// info reads the checkpoint information.
func (x *walIndex) info() (sqlitefile.CkptInfo, error) {
	var b [sqlitefile.CkptInfoSize]byte
	if _, err := x.f.ReadAt(b[:], sqlitefile.CkptInfoOffset); err != nil {
		return sqlitefile.CkptInfo{}, fmt.Errorf("read wal-index: %w", err)
	}
	info, _ := sqlitefile.ParseCkptInfo(b[:])
	return info, nil
}

func (x *walIndex) putUint32(v uint32, at int64) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return x.put(b[:], at)
}

func (x *walIndex) putMark(i int, frame uint32) error {
	return x.putUint32(frame, sqlitefile.ReadMarkOffset+4*int64(i))
}

// restart makes the next frame the first one of the WAL, under new salts. The
// caller holds READ1 to READ4 and CKPT exclusively and has copied all frames to
// the database.
//
// wal.c (walRestartHdr) stores the header first. Here a store can fail, and a
// backfill count left over from before the restart would let readers skip
// frames that nobody copied; so it goes first. In between, a count of 0 only
// says that a checkpoint has everything to do again.
func (x *walIndex) restart(salt2 uint32) error {
	if err := x.resetInfo(0, x.putMark); err != nil {
		return err
	}
	x.hdr.MaxFrame = 0
	x.hdr.Salt1++
	x.hdr.Salt2 = salt2
	x.blocks = nil
	x.dirty = true
	if err := x.putHeader(); err != nil {
		return err
	}
	x.dirty = false
	return nil
}

// resetInfo says that no frame is in the database, except perhaps the first
// `attempted` ones, and no reader in the WAL. setMark changes the mark of a
// slot that nobody else may hold meanwhile.
func (x *walIndex) resetInfo(attempted uint32, setMark func(i int, frame uint32) error) error {
	if err := x.putUint32(0, sqlitefile.BackfillOffset); err != nil {
		return err
	}
	if err := x.putUint32(attempted, sqlitefile.BackfillAttemptedOffset); err != nil {
		return err
	}
	if err := x.putMark(0, 0); err != nil {
		return err
	}
	for i := 1; i < sqlitefile.ReadMarks; i++ {
		if err := setMark(i, initialMark(i, attempted)); err != nil {
			return err
		}
	}
	return nil
}

// setFreeMark changes the mark of a slot unless a reader holds it.
func (x *walIndex) setFreeMark(i int, frame uint32) (free bool, err error) {
	return x.withSlots(i, 1, func() error { return x.putMark(i, frame) })
}

// withSlots runs fn while it holds READ slots i to i+n-1 exclusively; false
// when a reader holds one of them.
func (x *walIndex) withSlots(i, n int, fn func() error) (bool, error) {
	at := sqlitefile.WALReadLock0 + int64(i)
	if ok, err := setLock(x.f, exclusive, at, int64(n)); !ok || err != nil {
		return false, err
	}
	return true, errors.Join(fn(), unlock(x.f, at, int64(n)))
}

// initialMark is the read mark of a slot 1 to 4 that nobody holds, when the
// WAL has frames up to the given one.
func initialMark(i int, frame uint32) uint32 {
	if i == 1 {
		return frame
	}
	return sqlitefile.ReadMarkUnused
}
