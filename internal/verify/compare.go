package verify

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// comparison says how the files relate to the log's head.
type comparison struct {
	pending bool // the write-ahead log has transactions that the log has not
	behind  bool // the files are at an earlier position of the log
}

// image is a database as an application sees it: a page is its newest frame that counts, else the bytes
// of the file, else zeros.
type image struct {
	file     *os.File
	wal      *os.File          // nil: there is none
	frames   map[uint32]uint32 // page number -> frame, up to where the log has captured
	later    map[uint32]bool   // pages of committed frames after that
	commits  uint64            // transactions in those
	pageSize uint32
	count    uint32 // pages, as of the frames that count
}

// openImage opens the files of a database, seen as of the log's head.
func openImage(path string, head ltxlog.Entry, replica bool) (*image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the database file: %w", err)
	}
	img := &image{file: f, frames: map[uint32]uint32{}, later: map[uint32]bool{}}
	if err := img.readHeader(); err != nil {
		return nil, errors.Join(err, img.close())
	}
	if err := img.overlay(path+"-wal", head, replica); err != nil {
		return nil, errors.Join(err, img.close())
	}
	return img, nil
}

// close closes the files; they were only read.
func (img *image) close() error {
	err := img.file.Close()
	if img.wal != nil {
		err = errors.Join(err, img.wal.Close())
	}
	return err
}

// readHeader takes page size and count from the file, where frames do not say otherwise later.
func (img *image) readHeader() error {
	fi, err := img.file.Stat()
	if err != nil {
		return fmt.Errorf("size of the database file: %w", err)
	}
	if fi.Size() == 0 {
		return nil // everything is in the write-ahead log, if there is anything
	}
	b := make([]byte, sqlitefile.HeaderSize)
	n, err := img.file.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the database header: %w", err)
	}
	hdr, err := sqlitefile.ParseHeader(b[:n])
	if err != nil {
		return fmt.Errorf("database header: %w", err)
	}
	img.pageSize, img.count = hdr.PageSize, hdr.Pages(fi.Size())
	return nil
}

// overlay reads the write-ahead log: the frames that the log has captured, and the ones after them.
// With allCaptured (on a replica all frames are copies of entries) there are no later ones.
func (img *image) overlay(path string, head ltxlog.Entry, allCaptured bool) error {
	wal, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the write-ahead log: %w", err)
	}
	img.wal = wal
	fi, err := wal.Stat()
	if err != nil {
		return fmt.Errorf("size of the write-ahead log: %w", err)
	}
	// The chain of checksums is followed from the first frame on; where it is cut off is what says how
	// far the frames count.
	end, from := fi.Size(), capture.WALPos{}
	if !allCaptured {
		from, err = captured(wal, head)
		switch {
		case errors.Is(err, capture.ErrBroken):
			// A power cut lost the frames that the head was made from: what is left is all captured.
			allCaptured = true
		case err != nil:
			return fmt.Errorf("find where the log's head ends in the write-ahead log: %w", err)
		default:
			end = min(end, capturedSize(from, head))
		}
	}
	batch, err := scan(wal, end, capture.WALPos{})
	if err != nil {
		return err
	}
	if batch.Commits > 0 {
		img.pageSize, img.count = batch.PageSize, batch.PageCount
	}
	for _, p := range batch.Pages {
		img.frames[p.Pgno] = p.Frame
	}
	if allCaptured {
		return nil
	}
	if batch, err = scan(wal, fi.Size(), from); err != nil {
		return err
	}
	img.commits = batch.Commits
	for _, p := range batch.Pages {
		img.later[p.Pgno] = true
	}
	return nil
}

// scan is capture.Scan by the checksum chain alone; a file that is no write-ahead log yet has nothing.
func scan(wal io.ReaderAt, size int64, from capture.WALPos) (capture.Batch, error) {
	batch, err := capture.Scan(wal, size, from, capture.Limit{})
	if err != nil && !errors.Is(err, sqlitefile.ErrNoWAL) {
		return batch, fmt.Errorf("read the write-ahead log: %w", err)
	}
	return batch, nil
}

// capturedSize is the size of the write-ahead log up to a position.
func capturedSize(at capture.WALPos, head ltxlog.Entry) int64 {
	if at.Frame == 0 {
		return 0
	}
	return sqlitefile.FrameOffset(at.Frame+1, head.PageSize)
}

// captured returns where in this write-ahead log the log's head ends: nowhere when the head came from
// another generation of it, or from no write-ahead log.
func captured(wal io.ReaderAt, head ltxlog.Entry) (capture.WALPos, error) {
	b := make([]byte, sqlitefile.WALHeaderSize)
	n, err := wal.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return capture.WALPos{}, fmt.Errorf("read the header of the write-ahead log: %w", err)
	}
	hdr, err := sqlitefile.ParseWALHeader(b[:n])
	if errors.Is(err, sqlitefile.ErrNoWAL) {
		return capture.WALPos{}, nil
	}
	if err != nil {
		return capture.WALPos{}, fmt.Errorf("header of the write-ahead log: %w", err)
	}
	if head.WALSize == 0 || hdr.Salt1 != head.Salt1 || hdr.Salt2 != head.Salt2 {
		return capture.WALPos{}, nil
	}
	frame := sqlitefile.FrameCount(head.WALOffset+head.WALSize, hdr.PageSize)
	at, err := capture.At(wal, frame)
	if err != nil {
		return capture.WALPos{}, fmt.Errorf("frame %d: %w", frame, err)
	}
	return at, nil
}

// ReadAt reads whole pages; off and len(p) are multiples of the page size.
func (img *image) ReadAt(p []byte, off int64) (int, error) {
	size := int(img.pageSize)
	for n := 0; n+size <= len(p); n += size {
		if err := img.readPage(uint32((off+int64(n))/int64(size))+1, p[n:n+size]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (img *image) readPage(pgno uint32, b []byte) error {
	if frame, ok := img.frames[pgno]; ok {
		return capture.ReadPage(img.wal, frame, img.pageSize, b)
	}
	n, err := img.file.ReadAt(b, int64(pgno-1)*int64(img.pageSize))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(b[n:])
	return nil
}

// compare compares the files with the head of the log.
func compare(rec record, r *replay, db *Database, replica bool) (*comparison, error) {
	head := r.head
	img, err := openImage(rec.file, head, replica)
	if errors.Is(err, fs.ErrNotExist) {
		if head.Commit > 0 {
			db.fault(head.Max, "the log has %d pages, and there is no database file: %w", head.Commit, err)
		}
		return nil, nil
	}
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		db.fault(head.Max, "%w", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer img.close() //nolint:errcheck // read only
	if head.Commit == 0 {
		db.note("the log says that the database was removed, and there is a file")
		return nil, nil
	}
	found := &comparison{pending: img.commits > 0}
	if found.pending {
		db.note("%d transactions in the write-ahead log are not in the log yet", img.commits)
	}
	if img.pageSize != head.PageSize && !found.pending {
		db.fault(head.Max, "the database has pages of %d bytes, the log of %d", img.pageSize, head.PageSize)
		return found, nil
	}
	return found, img.compare(r, db, found)
}

// compare compares each page with the replay; without one, all pages with the head's checksum.
func (img *image) compare(r *replay, db *Database, found *comparison) error {
	head := r.head
	sum := uint64(0)
	var bad uint32
	err := pagesum.Compute(img, head.PageSize, head.Commit, 0, func(pgno uint32, got uint64) {
		sum ^= got &^ uint64(ltx.ChecksumFlag)
		if r.complete && !img.later[pgno] && got != r.page(pgno).sum && (bad == 0 || pgno < bad) {
			bad = pgno
		}
	})
	if err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	sum |= uint64(ltx.ChecksumFlag)
	wrongCount := !found.pending && img.count != head.Commit
	switch {
	case bad == 0 && !wrongCount && (r.complete || sum == head.Post):
		return nil
	case img.isEarlier(r, db, found):
		return nil
	case !r.complete && found.pending:
		db.note("the log no longer begins with transaction 1, so the files can be compared only after the node has captured the rest")
		return nil
	case bad != 0:
		db.fault(r.page(bad).txid, "page %d of the database is not the one in the log", bad)
	case wrongCount:
		db.fault(head.Max, "the database has %d pages, the log %d", img.count, head.Commit)
	default:
		db.fault(head.Max, "the pages of the database have checksum %016x, the log says %016x", sum, head.Post)
	}
	return nil
}

// isEarlier reports whether the files, with every committed frame, are at an earlier position of the
// log: what a power cut leaves, and the next start of the node mends.
func (img *image) isEarlier(r *replay, db *Database, found *comparison) bool {
	if found.pending || img.pageSize == 0 {
		return false
	}
	sum := uint64(0)
	err := pagesum.Compute(img, img.pageSize, img.count, 0, func(_ uint32, got uint64) {
		sum ^= got &^ uint64(ltx.ChecksumFlag)
	})
	if err != nil {
		return false // the first pass has read the same pages; the fault it found stands
	}
	txid, ok := r.posts[sum|uint64(ltx.ChecksumFlag)]
	if !ok || txid >= r.head.Max {
		return false
	}
	found.behind = true
	db.note("the files are at transaction %016x, %d behind the log: the next start of the node brings them forward", txid, r.head.Max-txid)
	return true
}
