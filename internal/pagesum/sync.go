package pagesum

import "fmt"

// Sync makes the sums durable without marking the file clean. Whoever rebuilds
// sums from a log after a power cut needs no entry older than the last Sync.
func (p *File) Sync() error {
	p.mu.RLock()
	f, open := p.mu.f, p.mu.data != nil
	p.mu.RUnlock()
	if !open {
		return fmt.Errorf("page checksums %s: %w", p.path, ErrClosed)
	}
	// fsync writes a mapping's dirty pages too, and unlike msync it needs no
	// lock that would hold Set up: the mapping may move meanwhile.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("page checksums %s: %w", p.path, err)
	}
	return nil
}
