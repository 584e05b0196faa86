package litefs

import (
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scripted is a primary that says what a test has it say.
type scripted struct {
	frames chan StreamFrame
	epoch  uint64
}

func (s *scripted) ClusterID() string { return "LFSC0000000000000001" }
func (s *scripted) NodeID() string    { return "primary" }
func (s *scripted) Epoch() uint64     { return s.epoch }
func (s *scripted) Promises() bool    { return true }

func (s *scripted) NextFrame() (StreamFrame, error) {
	f, ok := <-s.frames
	if !ok {
		return nil, io.EOF
	}
	return f, nil
}

func (s *scripted) Read([]byte) (int, error) { return 0, io.EOF }
func (s *scripted) Close() error             { return nil }

// say has a primary of an epoch say what it has to, until done, and returns why the stream ended.
func say(t *testing.T, s *Store, epoch uint64, done func() bool, frames ...StreamFrame) error {
	t.Helper()
	p := &scripted{frames: make(chan StreamFrame, len(frames)), epoch: epoch}
	for _, f := range frames {
		p.frames <- f
	}
	ended := make(chan error, 1)
	go func() { ended <- s.consume(t.Context(), "http://primary", p) }()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("it is not done in a minute")
			break
		}
	}
	close(p.frames)
	return <-ended
}

// A replica keeps the level that its primary has set: it is there after a restart, what a primary of an earlier epoch
// says is not taken, and one that has taken the level back is believed as well.
func TestLevelOfThePrimary(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n := openNode(t, dir, asReplica)
	db, err := n.store.ForceCreateDB(7, "app.db")
	if err != nil {
		t.Fatal(err)
	}
	named := &DBStreamFrame{DBID: 7, Name: "app.db"}
	takes := func(epoch uint64, level string) {
		t.Helper()
		done := func() bool { return db.LevelNoted() == level }
		err := say(t, n.store, epoch, done, named, &LevelStreamFrame{DBID: 7, Epoch: epoch, Level: level})
		if err == nil || !strings.Contains(err.Error(), "the primary ended it") {
			t.Fatalf("the stream: %v", err)
		}
	}
	takes(5, "quorum:2,durable,3s")
	if l := db.Level(); l.Kind != LevelQuorum || l.N != 2 {
		t.Fatalf("level %v", l)
	}
	takes(6, "max-lag:2s")

	err = say(t, n.store, 6, func() bool { return true }, named, &LevelStreamFrame{DBID: 7, Epoch: 5, Level: "async"})
	if err == nil || !strings.Contains(err.Error(), "it was replaced, epoch 6 is known") {
		t.Fatalf("a primary of an earlier epoch is heard: %v", err)
	}
	if err := n.store.SetLevel(t.Context(), "app.db", "async"); err != ErrReadOnlyReplica {
		t.Fatalf("a replica sets a level of its own: %v", err)
	}
	n.close()
	n = openNode(t, dir, asReplica)
	db = n.store.DB(7)
	if got := db.LevelNoted(); got != "max-lag:2s" {
		t.Fatalf("after a restart: %s", got)
	}
	takes(7, LevelOfRule)
}
