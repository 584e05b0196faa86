// Package doctor looks at a machine as a node with a given configuration would find it, and says what to
// change. It changes nothing: what it makes for a trial it removes.
package doctor

import (
	"context"
	"log/slog"

	"github.com/litefs/litefs/internal/config"
)

// Level is how bad a finding is.
type Level string

const (
	OK   Level = "ok"
	Warn Level = "warn" // a node runs, and something is lost: speed, a feature, a guarantee
	Fail Level = "fail" // a node does not run, or not in its cluster
)

// Finding is the outcome of one check.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Text  string `json:"text"`         // what is so
	Do    string `json:"do,omitempty"` // what to change; empty when nothing is to be
}

func ok(check, text string) Finding       { return Finding{check, OK, text, ""} }
func warn(check, text, do string) Finding { return Finding{check, Warn, text, do} }
func fail(check, text, do string) Finding { return Finding{check, Fail, text, do} }

// Options say what to look at.
type Options struct {
	Config *config.Config
	Token  string // that the node would show to others
	Logger *slog.Logger
}

// Examine makes every check, and hands each finding to tell as soon as it is there. It returns the worst
// level. Checks bound their own time; those that ask another machine do not begin once ctx has ended.
func Examine(ctx context.Context, o Options, tell func(Finding)) Level {
	worst := OK
	note := func(findings ...Finding) {
		for _, f := range findings {
			if f.Level == Fail || f.Level == Warn && worst == OK {
				worst = f.Level
			}
			tell(f)
		}
	}
	note(kernel(release()))
	device, privileged := deviceFuse(), privileges()
	note(device, privileged)
	if device.Level != Fail && privileged.Level != Fail {
		note(trial(ctx, o))
	}
	note(dataDir(o.Config.Data.Dir)...)
	note(mountPoint(o.Config.Fuse.Dir))
	note(limits()...)
	note(clock())
	note(ports(ctx, o)...)
	if ctx.Err() == nil {
		note(cluster(ctx, o)...)
	}
	return worst
}
