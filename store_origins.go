package litefs

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// reigns is which node wrote under which epoch, as far as this node was there: <data>/reigns, a line "EPOCH NODE"
// each. Entries of the log name their epoch alone.
type reigns struct {
	path string

	mu   sync.Mutex
	list []reign // ascending
}

type reign struct {
	epoch uint64
	node  string
}

// maxReigns bounds the list; of older ones the origin is unknown.
const maxReigns = 1024

func (r *reigns) open(path string) error {
	r.path = path
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nodes of the epochs: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		var e reign
		if _, err := fmt.Sscanf(lines.Text(), "%d %s", &e.epoch, &e.node); err == nil { // a torn line tells nothing
			r.insert(e)
		}
	}
	return nil
}

// note remembers that node writes under epoch.
func (r *reigns) note(epoch uint64, node string) error {
	if epoch == 0 || node == "" || strings.ContainsAny(node, " \n") {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.insert(reign{epoch, node}) || r.path == "" {
		return nil
	}
	var b bytes.Buffer
	for _, e := range r.list {
		fmt.Fprintf(&b, "%d %s\n", e.epoch, e.node)
	}
	if err := durable.Replace(vfs.OS(), r.path, b.Bytes()); err != nil {
		return fmt.Errorf("nodes of the epochs: %w", err)
	}
	return nil
}

// insert reports whether the list has changed. r.mu is held.
func (r *reigns) insert(e reign) bool {
	i, found := r.find(e.epoch)
	switch {
	case found && r.list[i].node == e.node:
		return false
	case found:
		r.list[i] = e
	default:
		r.list = slices.Insert(r.list, i, e)
	}
	r.list = r.list[max(0, len(r.list)-maxReigns):]
	return true
}

func (r *reigns) find(epoch uint64) (int, bool) {
	return slices.BinarySearchFunc(r.list, epoch, func(e reign, epoch uint64) int { return cmp.Compare(e.epoch, epoch) })
}

// origin returns the node that wrote under epoch, "" when it is unknown.
func (r *reigns) origin(epoch uint64) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, found := r.find(epoch); found {
		return r.list[i].node
	}
	return ""
}
