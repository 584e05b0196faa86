package ltxlog

import (
	"errors"
	"syscall"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// These are about what a run of the process that died has left half done, and the next one does not see.

// A start that dies when it has emptied a half of the shared file leaves all copies to the next one.
func TestUnpackedByARunThatDied(t *testing.T) {
	disk, m, _ := preparedRecent(t, 2)
	writes := 0
	if _, err := recentOn(vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Kind == vfs.OpWrite && o.Path == memRecent {
			if writes++; writes == 2 {
				return syscall.EIO
			}
		}
		return nil
	}), RecentOptions{size: 8 * recordAlign}); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	checkCuts(t, disk, recentOptions, m.txid, m.txid)
}
