package halt

import (
	"errors"
	"testing"
)

var bounds = Config{TTL: 10 * Second, First: 3 * Second, Longest: 60 * Second, Turn: 100 * Millisecond}

func mustGrant(t *testing.T, l *Lock, now Time, token string, want bool) {
	t.Helper()
	if got, _ := l.Grant(now, token, 1); got != want {
		t.Fatalf("grant %s at %d: %v, want %v", token, now, got, want)
	}
}

// The lock goes round in the order of arrival, and is free for a while between two holders.
func TestQueue(t *testing.T) {
	l := &Lock{Config: bounds}
	for _, token := range []string{"a", "b", "c", "b"} {
		l.Enter(token)
	}
	mustGrant(t, l, 0, "b", false)
	mustGrant(t, l, 0, "a", true)
	mustGrant(t, l, 0, "a", true) // the answer was lost
	l.Enter("a")                  // a holder does not wait
	l.Leave("b")
	if !l.End(Second, "a") || l.End(Second, "a") {
		t.Fatal("a hold ends once")
	}
	mustGrant(t, l, Second, "c", false)
	if _, wait := l.Grant(Second, "c", 1); wait != 100*Millisecond {
		t.Fatalf("wait %d", wait)
	}
	mustGrant(t, l, Second+100*Millisecond, "a", false)
	mustGrant(t, l, Second+100*Millisecond, "c", true)
	if l.Waiting() != 0 {
		t.Fatalf("%d wait", l.Waiting())
	}
	l.End(Second+101*Millisecond, "c")
	l.Enter("d")
	mustGrant(t, l, Second+102*Millisecond, "d", true) // who held it for a moment is followed in a moment
}

// A hold lasts as long as it is renewed, and not beyond its bound.
func TestExpiry(t *testing.T) {
	l := &Lock{Config: bounds}
	l.Enter("a")
	mustGrant(t, l, 0, "a", true)
	if l.Expired(3*Second-1) || !l.Expired(3*Second) {
		t.Fatal("an unrenewed hold ends after First")
	}
	if err := l.Renew(3*Second, "a"); !errors.Is(err, ErrLost) {
		t.Fatalf("renewed when it was over: %v", err)
	}
	l.Start(Second, "a")
	for at := Second; at < 60*Second; at += 2 * Second {
		if err := l.Renew(at, "a"); err != nil {
			t.Fatal(at, err)
		}
	}
	if !l.Expired(61 * Second) {
		t.Fatal("a hold outlives its bound")
	}
	l.Start(61*Second, "a")
	l.Cut(61*Second, "a")
	if err := l.Renew(61*Second, "a"); !errors.Is(err, ErrLost) || !l.Expired(61*Second) {
		t.Fatalf("a hold that was cut goes on: %v", err)
	}
}

func TestCheck(t *testing.T) {
	l := &Lock{Config: bounds}
	l.Enter("a")
	mustGrant(t, l, 0, "a", true)
	head := Pos{7, 70}
	good := Tx{Epoch: 1, Pre: head, Post: Pos{8, 80}}
	for name, c := range map[string]struct {
		now   Time
		token string
		epoch uint64
		tx    Tx
		want  error
	}{
		"good":              {0, "a", 1, good, nil},
		"another token":     {0, "b", 1, good, ErrLost},
		"expired":           {3 * Second, "a", 1, good, ErrLost},
		"another reign":     {0, "a", 2, Tx{2, head, Pos{8, 80}}, ErrLost},
		"of another reign":  {0, "a", 1, Tx{2, head, Pos{8, 80}}, ErrLost},
		"stale":             {0, "a", 1, Tx{1, Pos{6, 60}, Pos{7, 70}}, ErrPosition},
		"another history":   {0, "a", 1, Tx{1, Pos{7, 71}, Pos{8, 80}}, ErrPosition},
		"skips transaction": {0, "a", 1, Tx{1, head, Pos{9, 80}}, ErrPosition},
	} {
		if err := l.Check(c.now, c.token, c.epoch, head, c.tx); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	l.End(0, "a")
	if err := l.Check(0, "a", 1, head, good); !errors.Is(err, ErrLost) {
		t.Errorf("after the end: %v", err)
	}
}

func TestResolve(t *testing.T) {
	tx := Tx{Epoch: 3, Pre: Pos{7, 70}, Post: Pos{8, 80}}
	for name, c := range map[string]struct {
		head  Pos
		entry Entry
		found bool
		want  Outcome
	}{
		"not there":           {Pos{7, 70}, Entry{}, false, Void},
		"there":               {Pos{8, 80}, Entry{8, 8, 80, 3, false}, true, Committed},
		"there, others after": {Pos{9, 90}, Entry{8, 8, 80, 3, false}, true, Committed},
		"the end of a merger": {Pos{9, 90}, Entry{2, 8, 80, 3, false}, true, Committed},
		"fenced":              {Pos{8, 70}, Entry{8, 8, 70, 3, false}, true, Void},
		"the same of others":  {Pos{8, 80}, Entry{8, 8, 80, 4, false}, true, Void},
		"inside a merger":     {Pos{9, 90}, Entry{7, 9, 90, 3, false}, true, Unknown},
		"taken back":          {Pos{9, 70}, Entry{8, 8, 80, 3, true}, true, Void},
		"retired":             {Pos{900, 90}, Entry{}, false, Unknown},
	} {
		if got := Resolve(tx, c.head, c.entry, c.found); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// The holder counts from when it asked, so it stops before the primary does.
func TestLease(t *testing.T) {
	l := NewLease("a", 1, 100, 10*Second, 3*Second)
	if !l.Usable(3*Second) || l.Usable(3*Second+100) {
		t.Fatal("First counts from the request")
	}
	l.Renewed(2 * Second)
	l.Renewed(Second) // an answer that comes late
	if l.Until() != 12*Second {
		t.Fatalf("until %d", l.Until())
	}
	l.Lose()
	if l.Usable(0) {
		t.Fatal("usable when lost")
	}
}
