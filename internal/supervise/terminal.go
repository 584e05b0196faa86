package supervise

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// foregroundOf returns f when it is a terminal in whose foreground this process
// runs. A program in another group would be stopped when it reads from there.
func foregroundOf(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	if err != nil || group != unix.Getpgrp() {
		return nil
	}
	return f
}

// takeForeground makes the group of this process the terminal's foreground
// again. Who asks that from the background is stopped by SIGTTOU unless the
// signal is ignored, as it is here for the moment.
func takeForeground(terminal *os.File) error {
	signal.Ignore(syscall.SIGTTOU)
	defer signal.Reset(syscall.SIGTTOU)
	if err := unix.IoctlSetPointerInt(int(terminal.Fd()), unix.TIOCSPGRP, unix.Getpgrp()); err != nil {
		return fmt.Errorf("take the foreground of %s: %w", terminal.Name(), err)
	}
	return nil
}
