package guardian

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests, or a daemon when this process is a child.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && strings.HasPrefix(os.Args[1], "daemon-") {
		if err := standIn(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// standIn is a daemon that counts how often it was started, in a descriptor which the guardian keeps.
func standIn(what string) error {
	c, err := FromEnvironment()
	if err != nil {
		return err
	}
	if what == "daemon-fails" {
		os.Exit(3)
	}
	fd, ok := c.Kept("count")
	if !ok {
		if fd, err = unix.MemfdCreate("count", unix.MFD_CLOEXEC); err != nil {
			return err
		}
		if err := c.Keep("count", fd); err != nil {
			return err
		}
	}
	var count [1]byte
	if _, err := unix.Pread(fd, count[:], 0); err != nil {
		return err
	}
	count[0]++
	if _, err := unix.Pwrite(fd, count[:], 0); err != nil {
		return err
	}
	if what == "daemon-unready" {
		return die()
	}
	if what == "daemon-waits" {
		fmt.Print(count[0])
	}
	if err := errors.Join(c.Serving(), c.Ready()); err != nil {
		return err
	}
	if what == "daemon-waits" {
		<-c.Gone()
		return nil
	}
	if what == "daemon-stops" && count[0] == 1 {
		if err := errors.Join(c.SetDeadline(time.Hour), c.SetDeadline(0), c.SetDeadline(50*time.Millisecond)); err != nil {
			return err
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			return err
		}
		select {}
	}
	if what == "daemon-stops" {
		if left, ok := c.DeadlineBefore(); !ok || left > 0 || left < -time.Minute {
			return fmt.Errorf("of the deadline of the daemon before %v are left (%v), want none", left, ok)
		}
		return c.Bye()
	}
	if left, ok := c.DeadlineBefore(); ok {
		return fmt.Errorf("%v are left of a deadline that nobody has set", left)
	}
	if count[0] < 4 {
		return die()
	}
	if !slices.Equal(c.Names(), []string{"count"}) {
		return fmt.Errorf("held: %q", c.Names())
	}
	os.Stdout.WriteString("started four times\n")
	if err := errors.Join(c.Drop("count"), c.Bye()); err != nil {
		return err
	}
	os.Exit(5)
	return nil
}

func die() error {
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		return err
	}
	select {}
}

func TestADaemonIsReplaced(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	out, err := guard(t, ctx, "daemon-waits", func() {
		go func() {
			defer cancel()
			for range 3 {
				if err := Upgrade(ctx, dir, os.Args[0]); err != nil {
					failed <- err
					return
				}
			}
			if err := Upgrade(ctx, dir, "/bin/true"); err == nil || !strings.Contains(err.Error(), "no litefs") {
				failed <- fmt.Errorf("upgrade to /bin/true: %w", err)
				return
			}
			failed <- Upgrade(ctx, dir, "/nowhere")
		}()
	}, dir)
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("upgrade to what is not there: %v", err)
	}
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 128+15 {
		t.Errorf("error %v, want the end by SIGTERM", err)
	}
	if want := "1234"; out != want {
		t.Errorf("daemons served: %q, want %q", out, want)
	}
	if err := Upgrade(t.Context(), dir, os.Args[0]); !errors.Is(err, ErrNoGuardian) {
		t.Errorf("upgrade after the end: %v", err)
	}
}

// guard runs a daemon under a guardian and returns what it printed.
func guard(t *testing.T, ctx context.Context, what string, ready func(), control ...string) (string, error) {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	err = Run(ctx, Options{
		Argv: []string{os.Args[0], what}, Stdout: out, Stderr: out, Ready: ready,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Control: strings.Join(control, ""),
	})
	b, rerr := os.ReadFile(out.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(b), err
}

func TestADaemonThatDiesIsFollowedByAnother(t *testing.T) {
	ready := 0
	out, err := guard(t, t.Context(), "daemon-counts", func() { ready++ })
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 5 {
		t.Errorf("error %v, want the code of the last daemon, 5", err)
	}
	if out != "started four times\n" || ready != 1 {
		t.Errorf("output %q, ready %d times", out, ready)
	}
}

func TestADaemonThatNeverServedIsTheEnd(t *testing.T) {
	for what, code := range map[string]int{"daemon-fails": 3, "daemon-unready": 128 + 9} {
		_, err := guard(t, t.Context(), what, func() { t.Error("ready") })
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != code {
			t.Errorf("%s: error %v, want code %d", what, err, code)
		}
	}
}

func TestADaemonThatLetsItsDeadlinePassIsFollowedByAnother(t *testing.T) {
	if _, err := guard(t, t.Context(), "daemon-stops", func() {}); err != nil {
		t.Errorf("error %v, want the end of the second daemon", err)
	}
}

func TestADaemonIsAskedToEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := guard(t, ctx, "daemon-waits", cancel)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 128+15 {
		t.Errorf("error %v, want the end by SIGTERM", err)
	}
}

func TestMessages(t *testing.T) {
	a, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := connOf(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	fd, err := unix.MemfdCreate("m", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	name := strings.Repeat("n", maxName)
	for _, m := range []message{{kindKeep, name, fd}, {kindDrop, name, -1}, {kindReady, "", -1}} {
		if err := send(a, m); err != nil {
			t.Fatal(err)
		}
		got, err := receive(b)
		if err != nil || got.kind != m.kind || got.name != m.name || (got.fd >= 0) != (m.fd >= 0) {
			t.Fatalf("got %+v, %v", got, err)
		}
		if got.fd >= 0 {
			flags, err := unix.FcntlInt(uintptr(got.fd), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("a program that is started would get the descriptor (%v)", err)
			}
			unix.Close(got.fd)
		}
	}
	if err := send(a, message{kindDrop, name + "n", -1}); !errors.Is(err, errMessage) {
		t.Errorf("a name that is too long: %v", err)
	}
	for _, bad := range [][]byte{{byte(kindKeep), 'x'}, append([]byte{byte(kindDrop)}, name+"nn"...)} {
		if _, err := a.Write(bad); err != nil {
			t.Fatal(err)
		}
		if m, err := receive(b); !errors.Is(err, errMessage) {
			t.Errorf("%d bytes: %+v, %v", len(bad), m, err)
		}
	}
	// A descriptor that nobody asked for is closed.
	if _, _, err := a.WriteMsgUnix([]byte{byte(kindReady)}, unix.UnixRights(fd), (*net.UnixAddr)(nil)); err != nil {
		t.Fatal(err)
	}
	if m, err := receive(b); !errors.Is(err, errMessage) {
		t.Errorf("%+v, %v", m, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if m, err := receive(b); err == nil {
		t.Errorf("after the end: %+v", m)
	}
}
