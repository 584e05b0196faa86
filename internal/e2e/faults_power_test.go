package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/cutdisk"
)

// powerDisk is the disk of a node whose power is cut: an ext4 of its own, of which only what was flushed stays for certain.
type powerDisk struct {
	t    *testing.T
	mnt  string
	disk *cutdisk.Disk
	dev  *cutdisk.Device
}

func newPowerDisk(t *testing.T) *powerDisk {
	t.Helper()
	p := &powerDisk{t: t, mnt: t.TempDir()}
	if err := p.mount(emptyExt4(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.unmount(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *powerDisk) mount(content []byte) (err error) {
	p.disk = cutdisk.New(content)
	if p.dev, err = cutdisk.Attach(p.disk, p.t.TempDir()); err != nil {
		return err
	}
	return unix.Mount(p.dev.Path, p.mnt, "ext4", 0, "")
}

// unmount waits for the kernel to close what processes had open that were killed.
func (p *powerDisk) unmount() error {
	eventually(p.t, "the disk of a node is unmounted", func() (bool, string) {
		err := unix.Unmount(p.mnt, 0)
		return err == nil || errors.Is(err, unix.EINVAL), fmt.Sprint(err) // not mounted any more
	})
	eventually(p.t, "the disk of a node is taken away", func() (bool, string) {
		err := p.dev.Close()
		return err == nil, fmt.Sprint(err)
	})
	return nil
}

// cut has the disk be what a power cut now leaves of it. Nobody uses it.
func (p *powerDisk) cut(rng *rand.Rand) error {
	left := p.disk.Image(p.disk.Now(), rng)
	if err := p.unmount(); err != nil {
		return err
	}
	return p.mount(left)
}

// powerCut ends nodes with all that is below them; each comes back with what its disk has kept.
func (f *faulty) powerCut(c *clients, disks []*powerDisk, nodes ...int) fault {
	return fault{fmt.Sprintf("power cut of %d nodes", len(nodes)), func() error {
		for _, i := range nodes {
			f.down[i].Store(true)
		}
		for _, i := range nodes {
			c.killOn(i)
			f.nodes[i].killAll()
		}
		var errs []error
		for _, i := range nodes {
			errs = append(errs, disks[i].cut(f.rng))
		}
		return errors.Join(errs...)
	}, func() error {
		for _, i := range nodes {
			f.nodes[i].start()
			f.down[i].Store(false)
		}
		return nil
	}}
}

// The power of nodes is cut, of the primary, of the others, of all at once, or of a replica just before the primary is killed,
// while clients write on all of them at level quorum: what was acknowledged is on disks. It needs loop devices and mkfs.ext4.
func TestSoakFaultsPower(t *testing.T) {
	d := soakFor(t)
	if d == 0 {
		return
	}
	seed := soakSeed(t)
	for start := time.Now(); time.Since(start) < d; seed++ {
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			journal := []string{"wal", "delete"}[seed%2]
			t.Logf("LITEFS_SEED=%d, journal mode %s", seed, journal)
			var disks []*powerDisk
			for range 3 {
				disks = append(disks, newPowerDisk(t))
			}
			f := newFaultyOn(t, seed, len(disks), nil, journal, quorumLevel, func(i int) []option { return []option{dataIn(disks[i].mnt)} })
			faults(t, f, 10*time.Second, func(c *clients) {
				for began := time.Now(); time.Since(began) < min(d, time.Minute); {
					f.wait(0.3, 1)
					i := f.primary()
					j, k := (i+1)%3, (i+2)%3
					switch f.rng.IntN(4) {
					case 0:
						f.cutFor(f.powerCut(c, disks, i))
					case 1:
						f.cutFor(f.powerCut(c, disks, j, k))
					case 2:
						f.cutFor(f.powerCut(c, disks, 0, 1, 2))
					case 3:
						replica, primary := f.powerCut(c, disks, j), f.nodeKilled(i, c)
						f.begin(replica)
						f.begin(primary)
						f.end(replica)
						f.wait(1, 2)
						f.end(primary)
					}
				}
			})
			for _, n := range f.nodes {
				if log := n.log.text(); strings.Contains(log, "cannot be recovered") {
					t.Errorf("a database was set aside:\n%s", log)
				}
			}
		})
		if !ok {
			return
		}
	}
}

// cutFor has a fault be there for a moment.
func (f *faulty) cutFor(one fault) {
	f.t.Helper()
	f.begin(one)
	f.wait(0.1, 2)
	f.end(one)
}
