package capture

import (
	"errors"
	"fmt"
	"io"

	"github.com/litefs/litefs/sqlitefile"
)

// errEnd stops a walk over frames: what follows does not count.
var errEnd = errors.New("end of the chain")

const (
	// blockBytes bounds what one read takes from the WAL, one frame at least,
	// and with it the memory of a scan beside its page list. A larger buffer is
	// no small object to Go's allocator: making it costs the usual batch of a few
	// frames more than the reads that it saves a large one.
	blockBytes = 32 << 10

	// densePageSize is the largest page that is read along with the headers on
	// both sides of it. Above, a read for each header is cheaper than copying
	// the pages (BenchmarkScan).
	densePageSize = 4096
)

// eachHeader calls fn with the 24 bytes of the header of each frame from first
// to last.
func eachHeader(wal io.ReaderAt, pageSize, first, last uint32, fn func(frame uint32, header []byte) error) error {
	perBlock := uint32(1)
	if pageSize <= densePageSize {
		perBlock = framesPerBlock(pageSize)
	}
	// The page of a block's last frame is left out.
	size := func(frames uint32) int64 {
		return int64(frames-1)*sqlitefile.FrameSize(pageSize) + sqlitefile.FrameHeaderSize
	}
	return walk(wal, pageSize, first, last, perBlock, size, func(frame uint32, b []byte) error {
		return fn(frame, b[:sqlitefile.FrameHeaderSize])
	})
}

// eachFrame calls fn with header and page of each frame from first to last.
func eachFrame(wal io.ReaderAt, pageSize, first, last uint32, fn func(frame uint32, b []byte) error) error {
	frameSize := sqlitefile.FrameSize(pageSize)
	size := func(frames uint32) int64 { return int64(frames) * frameSize }
	return walk(wal, pageSize, first, last, framesPerBlock(pageSize), size, func(frame uint32, b []byte) error {
		return fn(frame, b[:frameSize])
	})
}

func framesPerBlock(pageSize uint32) uint32 {
	return max(1, uint32(blockBytes/sqlitefile.FrameSize(pageSize)))
}

// walk reads frames in blocks of perBlock, size(n) bytes for a block of n, and
// calls fn with the bytes from each frame's start to the end of its block. A WAL
// that ends before last is io.ErrUnexpectedEOF.
func walk(wal io.ReaderAt, pageSize, first, last, perBlock uint32, size func(frames uint32) int64, fn func(frame uint32, b []byte) error) error {
	if first > last {
		return nil
	}
	frameSize := sqlitefile.FrameSize(pageSize)
	buf := make([]byte, size(min(perBlock, last-first+1)))
	for left := last - first + 1; left > 0; {
		n := min(perBlock, left)
		start := last - left + 1
		b := buf[:size(n)]
		if got, err := wal.ReadAt(b, sqlitefile.FrameOffset(start, pageSize)); got < len(b) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read frames %d to %d: %w", start, start+n-1, err)
		}
		for i := range n {
			if err := fn(start+i, b[int64(i)*frameSize:]); err != nil {
				return err
			}
		}
		left -= n
	}
	return nil
}
