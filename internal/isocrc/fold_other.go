//go:build !amd64

package isocrc

// canFold reports whether fold may be called.
func canFold() bool { return false }

// fold is never called.
func fold(*[8]uint64, *byte, int, uint64, uint64) {}
