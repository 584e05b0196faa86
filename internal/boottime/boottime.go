// Package boottime is the clock that leases are measured by: nobody can set it, and it goes on while
// the machine sleeps. The monotonic clock inside a time.Time stops there: a primary that was suspended
// would wake up with all of its lease left, long after another node has taken it.
//
// It does not see that a virtual machine was paused from the outside; against that there are fencing
// tokens.
package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine started. It costs one system call.
func Now() time.Duration {
	var ts unix.Timespec
	// clock_gettime(2) fails for a clock that the kernel does not have; Linux has this one since 2.6.39.
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
