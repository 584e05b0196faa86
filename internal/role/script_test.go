package role

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestScripts runs testdata/*.txt. A line is one of
//
//	config id=b candidate promote retry=1s demote-delay=10s
//	1.5s EVENT ARGS       the event comes at that time
//	> ACTION ARGS         that event's actions, in order; all of them
//	= STATE [admits]      the state after them
//	due 2s                when the next Tick must come, or "never"
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			runScript(t, strings.Split(string(b), "\n"))
		})
	}
}

func runScript(t *testing.T, lines []string) {
	var (
		m    *Machine
		now  Time
		left []string // actions that were not named yet
	)
	for i, line := range lines {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("line %d: %s: %s", i+1, strings.TrimSpace(line), fmt.Sprintf(format, args...))
		}
		if f[0] != ">" && len(left) > 0 {
			fail("not named before: %q", left)
		}
		switch f[0] {
		case "config":
			m = New(parseConfig(t, f[1:]))
		case ">":
			if len(left) == 0 {
				fail("no action is left")
			}
			if want := strings.Join(f[1:], " "); left[0] != want {
				fail("got %q", left[0])
			}
			left = left[1:]
		case "=":
			got := m.State().String()
			if m.Admits(now) {
				got += " admits"
			}
			if want := strings.Join(f[1:], " "); got != want {
				fail("got %q", got)
			}
		case "due":
			if want := f[1]; want == "never" && m.Due() != Never || want != "never" && m.Due() != parseTime(t, want) {
				fail("got %v", time.Duration(m.Due()))
			}
		default:
			now = parseTime(t, f[0])
			left = nil
			for _, a := range m.Step(now, parseEvent(t, f[1:])) {
				left = append(left, formatAction(a))
			}
		}
	}
	if len(left) > 0 {
		t.Fatalf("at the end, not named: %q", left)
	}
}

func parseTime(t *testing.T, s string) Time {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return Time(d)
}

func parseConfig(t *testing.T, words []string) Config {
	c := Config{Retry: Second, DemoteDelay: 10 * Second}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "id":
			c.NodeID = v
		case "candidate":
			c.Candidate = true
		case "promote":
			c.Promote = true
		case "retry":
			c.Retry = parseTime(t, v)
		case "demote-delay":
			c.DemoteDelay = parseTime(t, v)
		default:
			t.Fatalf("config %q", w)
		}
	}
	return c
}

// parseFullness reads "3/17": epoch and transactions.
func parseFullness(t *testing.T, s string) Fullness {
	e, n, _ := strings.Cut(s, "/")
	epoch, err1 := strconv.ParseUint(e, 10, 64)
	txns, err2 := strconv.ParseUint(n, 10, 64)
	if err1 != nil || err2 != nil {
		t.Fatalf("fullness %q", s)
	}
	return Fullness{epoch, txns}
}

func parseEvent(t *testing.T, words []string) Event {
	t.Helper()
	var (
		args = make(map[string]string)
		seen Seen
	)
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		args[k] = v
		switch k {
		case "failed":
			seen.Failed = true
		case "primary":
			seen.Primary = v
		case "own":
			seen.Own = parseFullness(t, v)
		case "record":
			seen.Record.Position = parseFullness(t, v)
			seen.Record.Epoch = max(seen.Record.Epoch, seen.Record.Position.Epoch)
		case "epoch":
			epoch, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			seen.Record.Epoch = epoch
		case "in-sync":
			seen.Record.InSync = strings.Split(v, ",")
		case "successor":
			seen.Record.Successor = v
		case "peer": // id:fullness[:unable][:learner][:primary]
			p := strings.Split(v, ":")
			peer := Peer{ID: p[0], Candidate: true, Able: true, Fullness: parseFullness(t, p[1])}
			for _, flag := range p[2:] {
				switch flag {
				case "unable":
					peer.Able = false
				case "learner":
					peer.Candidate = false
				case "primary":
					peer.Primary = true
				default:
					t.Fatalf("peer %q", v)
				}
			}
			seen.Peers = append(seen.Peers, peer)
		}
	}
	reign := uint64(1)
	if v := args["reign"]; v != "" {
		reign, _ = strconv.ParseUint(v, 10, 64)
	}
	_, failed := args["failed"]
	_, lost := args["lost"]
	_, force := args["force"]
	switch words[0] {
	case "tick":
		return Tick{}
	case "seen":
		return seen
	case "stream-ended":
		return StreamEnded{}
	case "vacant":
		return Vacant{}
	case "caught-up":
		return CaughtUp{}
	case "acquired":
		return Acquired{From: parseTime(t, args["from"]), TTL: parseTime(t, args["ttl"]), Record: seen.Record}
	case "resumed":
		return Resumed{From: parseTime(t, args["from"]), TTL: parseTime(t, args["ttl"])}
	case "not-acquired":
		return NotAcquired{}
	case "renewed":
		return Renewed{Reign: reign, From: parseTime(t, args["from"])}
	case "not-renewed":
		return NotRenewed{Reign: reign, Lost: lost}
	case "prepared":
		return Prepared{Failed: failed}
	case "fenced":
		return Fenced{}
	case "drained":
		return Drained{To: args["to"]}
	case "handoff":
		return Handoff{}
	case "promote":
		return Promote{Force: force}
	case "demote":
		return Demote{To: args["to"]}
	case "stop":
		return Stop{}
	}
	t.Fatalf("event %q", words[0])
	return nil
}

func formatAction(a Action) string {
	switch a := a.(type) {
	case Look:
		return "look"
	case Follow:
		return "follow " + a.URL
	case Unfollow:
		return "unfollow"
	case Acquire:
		return "acquire"
	case Renew:
		return fmt.Sprintf("renew %d", a.Reign)
	case Prepare:
		return fmt.Sprintf("prepare %d", a.Epoch)
	case Admit:
		return "admit"
	case Fence:
		return "fence"
	case Release:
		return "release"
	case Drain:
		return strings.TrimSpace("drain " + a.To)
	case Resume:
		return "resume"
	case HandOver:
		return "hand-over " + a.To
	case AskPrimary:
		return "ask-primary " + a.URL
	case Stopped:
		return "stopped"
	}
	return fmt.Sprintf("%T", a)
}
