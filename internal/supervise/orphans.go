package supervise

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapOrphans waits for the processes that were handed to this one when their
// parents ended, as the first process of a container gets them; else they would
// stay as zombies and hold their numbers. It returns when pid, the program
// itself, has ended, and leaves that to be waited for.
//
// waitid only looks (WNOWAIT), so that the end of the program stays for whoever
// waits for it by its number. There is no other child: see Options.Init.
func reapOrphans(pid int) {
	for {
		var info siginfo
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || int(info.pid) == pid:
			return
		}
		// That it cannot be waited for any more is no fault.
		_, _ = syscall.Wait4(int(info.pid), nil, syscall.WNOHANG, nil)
	}
}

// siginfo is siginfo_t of waitid(2) on 64-bit Linux: unix.Siginfo has no name for
// the process.
type siginfo struct {
	_   [16]byte // signo, errno, code, padding
	pid int32
	_   [108]byte
}
