package isocrc

import "golang.org/x/sys/cpu"

// canFold reports whether fold may be called.
func canFold() bool { return cpu.X86.HasPCLMULQDQ }

// fold takes n bytes at p, a multiple of 64, into acc: for each 64 of them acc is multiplied by x^512, and
// they are added. lo and hi are what the first and the second word of a pair are multiplied by.
//
//go:noescape
func fold(acc *[8]uint64, p *byte, n int, lo, hi uint64)
