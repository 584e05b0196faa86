package sqlitefile

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Hash tables of the wal-index (walformat.html 2.2). Block 0 gives its start to
// the headers and holds 4062 frames, each other block 4096. A block is an array
// of page numbers, one a frame in the order of the WAL, and an open-addressed
// table of 8192 slots: 0 is empty, n is the block's n-th frame.
const (
	BlockFrames      = 4096
	FirstBlockFrames = BlockFrames - indexPrefix/pgnoSize

	indexPrefix = CkptInfoOffset + CkptInfoSize // 136, in front of block 0's page numbers
	pgnoSize    = 4
	slotSize    = 2
	hashSlots   = 2 * BlockFrames
	hashOffset  = BlockFrames * pgnoSize // of the slots, in every block
	hashFactor  = 383
)

// ErrBrokenIndex is returned for a hash table that no writer makes. The
// wal-index must be rebuilt from the WAL.
var ErrBrokenIndex = errors.New("broken wal-index")

// BlockOf returns the number of the block, from 0, that holds frame (from 1).
func BlockOf(frame uint32) uint32 {
	return uint32((uint64(frame) + BlockFrames - FirstBlockFrames - 1) / BlockFrames)
}

// BlockOffset returns the byte offset of a block in the -shm file.
func BlockOffset(block uint32) int64 {
	return int64(block) * IndexBlockSize
}

// BlockZero returns the frame before the first one of a block: its n-th frame is
// BlockZero+n.
func BlockZero(block uint32) uint32 {
	if block == 0 {
		return 0
	}
	return FirstBlockFrames + (block-1)*BlockFrames
}

// BlockCapacity returns how many frames a block holds.
func BlockCapacity(block uint32) uint32 {
	if block == 0 {
		return FirstBlockFrames
	}
	return BlockFrames
}

// PgnoOffset returns the byte offset in the -shm file of a frame's page number.
func PgnoOffset(frame uint32) int64 {
	block := BlockOf(frame)
	return BlockOffset(block) + int64(pgnoPos(block, frame-BlockZero(block)))
}

// SlotOffset returns the byte offset in the -shm file of a hash slot.
func SlotOffset(block, slot uint32) int64 {
	return BlockOffset(block) + hashOffset + int64(slot)*slotSize
}

// pgnoPos is the position in its block of the n-th frame's page number, n from 1.
func pgnoPos(block, n uint32) uint32 {
	if block == 0 {
		return indexPrefix + (n-1)*pgnoSize
	}
	return (n - 1) * pgnoSize
}

func hashOf(pgno uint32) uint32 { return pgno * hashFactor & (hashSlots - 1) }

func nextSlot(slot uint32) uint32 { return (slot + 1) & (hashSlots - 1) }

// IndexBlock is the bytes of one block of the wal-index. A writer keeps a copy
// of the last block in memory and writes to the file what Add changed.
type IndexBlock struct {
	Number uint32 // from 0
	Bytes  []byte // IndexBlockSize
}

// NewIndexBlock returns an empty block. The headers in front of block 0 are
// zero.
func NewIndexBlock(number uint32) IndexBlock {
	return IndexBlock{Number: number, Bytes: make([]byte, IndexBlockSize)}
}

// index returns the place of a frame in the block, from 1; false when the frame
// is in another block.
func (b IndexBlock) index(frame uint32) (uint32, bool) {
	if frame == 0 || BlockOf(frame) != b.Number {
		return 0, false
	}
	return frame - BlockZero(b.Number), true
}

func (b IndexBlock) pgno(n uint32) uint32 {
	return binary.NativeEndian.Uint32(b.Bytes[pgnoPos(b.Number, n):])
}

func (b IndexBlock) slot(i uint32) uint32 {
	return uint32(binary.NativeEndian.Uint16(b.Bytes[hashOffset+i*slotSize:]))
}

func (b IndexBlock) setSlot(i, n uint32) {
	binary.NativeEndian.PutUint16(b.Bytes[hashOffset+i*slotSize:], uint16(n))
}

// Pgno returns the page number of a frame, 0 when the frame is not in the block.
func (b IndexBlock) Pgno(frame uint32) uint32 {
	n, ok := b.index(frame)
	if !ok {
		return 0
	}
	return b.pgno(n)
}

// Reset empties the block. What lies in front of block 0's table is kept.
func (b IndexBlock) Reset() {
	clear(b.Bytes[pgnoPos(b.Number, 1):])
}

// Add enters a frame and returns the slot it took. To publish it in the file,
// write the 4 bytes at PgnoOffset(frame), then the 2 bytes at SlotOffset.
//
// Frames are added in order. The caller has emptied the block before its first
// frame (Reset, written as a whole) and removed frames that were rolled back
// (ClearAfter): a stale entry is not found here, but would be by readers.
func (b IndexBlock) Add(frame, pgno uint32) (slot uint32, err error) {
	n, ok := b.index(frame)
	if !ok {
		return 0, fmt.Errorf("%w: frame %d is not in block %d", ErrBrokenIndex, frame, b.Number)
	}
	slot = hashOf(pgno)
	for range n {
		if b.slot(slot) == 0 {
			binary.NativeEndian.PutUint32(b.Bytes[pgnoPos(b.Number, n):], pgno)
			b.setSlot(slot, n)
			return slot, nil
		}
		slot = nextSlot(slot)
	}
	return 0, fmt.Errorf("%w: block %d has more entries than frames before %d", ErrBrokenIndex, b.Number, frame)
}

// Find returns the newest frame of page pgno in the block that is at least
// minFrame and at most maxFrame; 0 when there is none. A reader asks the block
// of its last frame first, then the ones before it.
func (b IndexBlock) Find(pgno, minFrame, maxFrame uint32) (uint32, error) {
	found := uint32(0)
	zero, capacity := BlockZero(b.Number), BlockCapacity(b.Number)
	slot := hashOf(pgno)
	for range hashSlots {
		n := b.slot(slot)
		if n == 0 {
			return found, nil
		}
		if n > capacity {
			return 0, fmt.Errorf("%w: block %d, slot %d names its frame %d of %d", ErrBrokenIndex, b.Number, slot, n, capacity)
		}
		// Later entries of a chain are newer; max guards against a wrapped one.
		if frame := zero + n; frame >= minFrame && frame <= maxFrame && b.pgno(n) == pgno {
			found = max(found, frame)
		}
		slot = nextSlot(slot)
	}
	return 0, fmt.Errorf("%w: block %d has no empty slot", ErrBrokenIndex, b.Number)
}

// ClearAfter removes all entries of frames after frame, which is in this block
// or before it. SQLite does this after a rollback; blocks that follow are
// emptied when their first frame is added.
func (b IndexBlock) ClearAfter(frame uint32) {
	zero := BlockZero(b.Number)
	if frame <= zero {
		b.Reset()
		return
	}
	keep := min(frame-zero, BlockCapacity(b.Number))
	for i := range uint32(hashSlots) {
		if b.slot(i) > keep {
			b.setSlot(i, 0)
		}
	}
	clear(b.Bytes[pgnoPos(b.Number, keep+1):hashOffset])
}
