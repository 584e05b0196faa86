package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlapp"
)

// Inserts are rows inserted as fast as they go, one a transaction, on a node of its own process.
type Inserts struct {
	Samples []Sample      // one a round
	CPU     time.Duration // of the node for each of them, until its archive has everything
	AppCPU  time.Duration // of the application
}

// inserting is a node of its own process with an application that inserts.
type inserting struct {
	*member
	app   *sqlapp.Process
	conn  *sqlapp.Conn
	found *Inserts
	spent time.Duration // of the node, before the first round
}

// insertRounds cuts the time that is measured into rounds of a second: what the machine does beside us lasts for
// longer, and then slows both nodes down.
func insertRounds(o Options) (rounds int, each time.Duration) {
	each = min(o.Duration, time.Second)
	return max(1, int(time.Duration(o.Rounds)*o.Duration/each)), each
}

// insertsArchived measures inserts on a node with an archive and on one without, in turns. While one has its turn the
// other one is stopped (SIGSTOP), and with it the archive's server: what a node has to do for its archive it does while it
// is measured, or after the last round, when its processor time still counts.
func insertsArchived(ctx context.Context, o Options, dir string, target config.BackupTarget, server *leaseserver.Server, r *ArchiveResult) (err error) {
	sides := []*inserting{{found: &r.Without}, {found: &r.With}}
	for i, s := range sides {
		name := []string{"without", "with"}[i]
		if s.member, err = startMember(ctx, o, dir, name, func(c *childnode.Config) {
			if name == "with" {
				c.Backup = backupKeys(target)
			}
		}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.stop(ctx)) }()
		if s.app, err = sqlapp.Start(ctx, o.App); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.app.Kill()) }()
		if s.conn, err = s.app.Open(ctx, s.path("inserts.db"), sqlapp.Options{BusyTimeout: time.Minute, Pragmas: []string{"journal_mode=wal", "synchronous=normal"}}); err != nil {
			return err
		}
		if _, err := s.conn.Exec(ctx, table); err != nil {
			return err
		}
		if s.spent, err = processCPU(s.proc.PID()); err != nil {
			return err
		}
	}
	with, without := sides[1], sides[0]
	// Whatever happens they are to end, which a process that is stopped does not.
	defer func() { err = errors.Join(err, without.proc.Signal(syscall.SIGCONT), with.goes(true, server)) }()
	if err := without.proc.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	var before time.Duration
	if server != nil {
		if before, err = processCPU(server.PID()); err != nil {
			return err
		}
	}
	rounds, each := insertRounds(o)
	for round := range rounds {
		for turn := range 2 {
			if (round+turn)%2 == 0 { // without, with, with, without, ...
				err = errors.Join(with.goes(false, server), without.proc.Signal(syscall.SIGCONT))
			} else {
				err = errors.Join(without.proc.Signal(syscall.SIGSTOP), with.goes(true, server))
			}
			if err != nil {
				return err
			}
			if err := sides[(round+turn)%2].insert(ctx, each); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(without.proc.Signal(syscall.SIGCONT), with.goes(true, server)); err != nil {
		return err
	}
	if err := with.archived(ctx); err != nil {
		return err
	}
	for _, s := range sides {
		if err := s.sum(); err != nil {
			return err
		}
	}
	if server != nil {
		after, err := processCPU(server.PID())
		if err != nil {
			return err
		}
		r.ServerCPU = (after - before) / time.Duration(r.With.count())
	}
	return nil
}

// goes lets a node and the server of its archive go on, or stops them.
func (s *inserting) goes(on bool, server *leaseserver.Server) error {
	sig, ofServer := syscall.SIGSTOP, (*leaseserver.Server).Pause
	if on {
		sig, ofServer = syscall.SIGCONT, (*leaseserver.Server).Resume
	}
	if server == nil {
		return s.proc.Signal(sig)
	}
	return errors.Join(ofServer(server), s.proc.Signal(sig))
}

// insert takes one sample.
func (s *inserting) insert(ctx context.Context, d time.Duration) error {
	done, err := s.conn.Repeat(ctx, []sqlapp.Step{{SQL: insertRow}}, 0, d)
	s.found.Samples = append(s.found.Samples, Sample{
		Units: float64(done.Rounds), Rounds: done.Rounds, Elapsed: time.Duration(done.Nanos), CPU: time.Duration(done.CPU),
	})
	return err
}

// sum tells what processor the inserts took.
func (s *inserting) sum() error {
	spent, err := processCPU(s.proc.PID())
	if err != nil {
		return err
	}
	s.found.CPU = (spent - s.spent) / time.Duration(s.found.count())
	for _, sample := range s.found.Samples {
		s.found.AppCPU += sample.CPU
	}
	s.found.AppCPU /= time.Duration(s.found.count())
	return nil
}

func (f *Inserts) count() (n int) {
	for _, s := range f.Samples {
		n += s.Rounds
	}
	return max(1, n)
}

// archived waits until the node holds nothing in its log for the archive.
func (s *inserting) archived(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		held, err := s.metric(ctx, "litefs_archive_held_bytes")
		if err != nil {
			return err
		}
		if held == "0" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the archive lacks %s bytes: %w\n%s", held, context.Cause(ctx), s.proc.Tail())
		case <-tick.C:
		}
	}
}

// metric asks the node for the first value of a metric.
func (m *member) metric(ctx context.Context, name string) (value string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.cfg.Addr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if line := lines.Text(); strings.HasPrefix(line, name) {
			return line[strings.LastIndexByte(line, ' ')+1:], nil
		}
	}
	return "", fmt.Errorf("node %s: no metric %s (%s)", filepath.Base(m.cfg.Mount), name, resp.Status)
}

// backupKeys is a target as the section backup of a file.
func backupKeys(t config.BackupTarget) []string {
	if t.Type == config.BackupFile {
		return []string{"type: file", "path: " + t.Path}
	}
	return []string{"type: " + t.Type, "url: " + t.URL, "endpoint: " + t.Endpoint, "access-key: " + t.AccessKey, "secret-key: " + string(t.SecretKey)}
}
