package ltxlog

import (
	"fmt"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

// While several logs are written to, a write waits for more records, a few times at most; what it tells ahead it tells of
// all of them, before any is durable. A log that is written to alone waits for nobody, soon after the others have ended too.
func TestRecentAwaitsCompany(t *testing.T) {
	disk := vfs.NewMem()
	dir := func(id uint64) string { return fmt.Sprintf("/data/%d/ltx", id) }
	if err := disk.MkdirAll("/data", 0o700); err != nil {
		t.Fatal(err)
	}
	pauses := 0
	paused := func() {}
	opt := RecentOptions{after: -1, syncInline: true, size: 64 * recordAlign}
	opt.pause = func(time.Duration) { pauses++; paused() }
	var told []uint64 // ids of logs
	writes := 0
	opt.FS = vfs.NewFaulty(disk, func(o vfs.Op) error {
		if o.Kind == vfs.OpWrite && o.Path == memRecent && o.Size < int(opt.size) {
			writes++
			if len(told) != 2 {
				t.Errorf("write %d of records: %d were told ahead, want 2", writes, len(told))
			}
		}
		return nil
	})
	r, err := OpenRecent(memRecent, dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	models, logs := []*model{newModel(0, 512), newModel(1, 512)}, []*Log(nil)
	for id, m := range models {
		l := open(t, dir(uint64(id)), Options{FS: disk, spillSize: testSpill, Recent: r, ID: uint64(id)})
		m.append(t, l, false)
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
	}
	ahead := func(id int) {
		t.Helper()
		c := models[id].next()
		if _, added, err := logs[id].AppendAhead(c.h, c.emit, c.post, func() { told = append(told, uint64(id)) }); err != nil || !added {
			t.Errorf("added %t: %v", added, err)
		}
	}

	// The other record comes in the first pause; no more come.
	r.company = companySize
	done := make(chan struct{})
	paused = func() {
		if pauses > 1 {
			return
		}
		go func() { defer close(done); ahead(1) }()
		for n := 0; n < 2; time.Sleep(time.Millisecond) {
			r.mu.Lock()
			n = len(r.queue)
			r.mu.Unlock()
		}
	}
	ahead(0)
	<-done
	if writes != 1 || pauses != companyLooks {
		t.Errorf("%d writes after %d pauses, want 1 after %d", writes, pauses, companyLooks)
	}

	last := 0
	for i := range 100 {
		before := pauses
		told = append(told[:0], 9) // one beside that of the log
		ahead(0)
		if pauses > before {
			last = i
		}
	}
	if last > 4*companyMean {
		t.Errorf("write %d of a log that is written to alone has waited", last)
	}
}
