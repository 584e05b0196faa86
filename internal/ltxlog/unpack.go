package ltxlog

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// OpenRecent opens the file at path, which is made when it is needed. What a crash has left in it goes to the logs
// first, whose directories dirOf names: none of them may be open. A log that cannot be opened keeps its copies so,
// while the others go on.
func OpenRecent(path string, dirOf func(id uint64) string, opt RecentOptions) (*Recent, error) {
	opt.ensureDefaults()
	r := &Recent{fs: opt.FS, path: path, logger: opt.Logger, size: opt.size, after: opt.after, inline: opt.syncInline, pause: opt.pause}
	err := r.unpack(dirOf)
	if err == nil && opt.Wipe {
		err = r.wipe()
	}
	if err != nil {
		err = fmt.Errorf("recent log entries in %s: %w", path, err)
		if r.file != nil {
			err = errors.Join(err, r.file.Close())
		}
		return nil, err
	}
	return r, nil
}

// wipe writes over all of the file, if there is one.
func (r *Recent) wipe() error {
	if _, err := r.fs.Stat(r.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if r.file == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	return writeAllAt(r.file, make([]byte, r.size), 0)
}

// sharedCopy is a valid record of the shared file.
type sharedCopy struct {
	gen, seq, id, min, max uint64
	b                      []byte
}

// unpack writes the copies that count into files of the logs' own, durably, and empties the shared file then.
func (r *Recent) unpack(dirOf func(uint64) string) error {
	all, err := r.read()
	if err != nil || len(all) == 0 {
		return err
	}
	byLog := make(map[uint64][]sharedCopy)
	for _, p := range all {
		r.seq = max(r.seq, p.seq)
		byLog[p.id] = append(byLog[p.id], p)
	}
	for id, list := range byLog {
		if err := r.unpackLog(dirOf(id), list); err != nil {
			return err
		}
	}
	if err := r.open(); err != nil {
		return err
	}
	return r.empty()
}

// unpackLog writes the file of one log.
func (r *Recent) unpackLog(dir string, list []sharedCopy) error {
	if _, err := r.fs.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // dropped
	} else if err != nil {
		return err
	}
	// A start that did not come to its end has left the file, which is whole. Of what it has, the shared file may have lost
	// a half since.
	path := filepath.Join(dir, recentName)
	if _, err := r.fs.Stat(path); err == nil {
		return r.fs.SyncDir(dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	was, err := readMark(r.fs, filepath.Join(dir, durableName))
	if err != nil {
		return err
	}
	var b []byte
	for _, p := range list {
		if p.seq >= was.forgotten && p.max > was.txid {
			b = appendUnpacked(b, p)
		}
	}
	if len(b) == 0 {
		return nil
	}
	r.logger.Info("copies of recent log entries found", "dir", dir, "bytes", len(b))
	return durable.Replace(r.fs, path, append(b, make([]byte, len(b))...)) // the other half is empty
}

// read returns the records of the file, in the order in which they were written.
func (r *Recent) read() (all []sharedCopy, err error) {
	err = eachHalf(r.fs, r.path, func(f vfs.File, at, end int64) error {
		found, err := readCopies(f, at, end)
		all = append(all, found...)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b sharedCopy) int { return cmp.Compare(a.seq, b.seq) })
	return all, nil
}

// readCopies reads one half.
func readCopies(f vfs.File, at, end int64) (found []sharedCopy, err error) {
	for at+recordPrefix <= end {
		p, err := readCopy(f, at, end)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return nil, err
		}
		if err == nil && len(found) > 0 {
			if last := found[len(found)-1]; p.gen != last.gen || p.seq <= last.seq {
				err = corrupt("a record of an earlier use")
			}
		}
		switch {
		case err == nil:
			found = append(found, p)
			at += recordPrefix + int64(len(p.b))
		case at%recordAlign == 0:
			return found, nil
		default:
			at = align(at) // the end of a write
		}
	}
	return found, nil
}

func readCopy(f vfs.File, at, end int64) (p sharedCopy, err error) {
	var h [recordPrefix]byte
	if err := readFull(f, h[:], at); err != nil {
		return p, err
	}
	size := binary.BigEndian.Uint64(h[48:])
	if string(h[:8]) != recordMagic || size > uint64(end-at-recordPrefix) {
		return p, corrupt("no record at byte %d", at)
	}
	p.b = make([]byte, size)
	if err := readFull(f, p.b, at+recordPrefix); err != nil {
		return p, err
	}
	if sum := crc32.Update(crc32.Checksum(h[:56], crc32c), crc32c, p.b); sum != binary.BigEndian.Uint32(h[56:]) {
		return p, corrupt("record at byte %d has another checksum", at)
	}
	for i, v := range []*uint64{&p.gen, &p.seq, &p.id, &p.min, &p.max} {
		*v = binary.BigEndian.Uint64(h[8+8*i:])
	}
	return p, nil
}
