package main

import (
	"strings"
	"testing"
	"time"

	node "github.com/litefs/litefs/http"
)

func TestStatusTables(t *testing.T) {
	lag := int64(1500)
	replica := statusReport{
		Node: node.Info{
			NodeID: "n2", Role: "replica", PrimaryURL: "http://127.0.0.1:1", Mount: "/mnt", Passthrough: true, LagMillis: &lag,
			Databases: []node.DatabaseInfo{
				{ID: "1", Name: "a.db", TXID: "000000000000000a", PageSize: 4096, Pages: 512, WALBytes: 100, Level: "quorum:1,durable,5s", LevelPending: true},
				{ID: "2", Name: "b.db", TXID: "0000000000000003", Error: "disk full"},
				{ID: "3", Name: "c.db", TXID: "0000000000000003"},
				{ID: "5", Name: "e.db", TXID: "0000000000000000", LoadBytes: 1 << 20, LoadSize: 2 << 20},
			},
			Failed: []node.FailedInfo{{Name: "d.db", Error: "damaged"}},
		},
		Primary: &node.Info{Databases: []node.DatabaseInfo{{ID: "1", TXID: "0000000000000010"}, {ID: "3", TXID: "0000000000000003"}}},
	}
	primary := statusReport{Node: node.Info{
		NodeID: "n1", Role: "primary", IsPrimary: true, InSync: []string{"n2"}, Waited: []string{"n2", "n3"},
		Databases: []node.DatabaseInfo{{Name: "a.db", Level: "max-lag:2s", WritersHeld: true}},
		Replicas: []node.ReplicaInfo{
			{NodeID: "n2", Remote: "10.0.0.2:5", Connected: true, Databases: []node.ReplicaDatabaseInfo{
				{Name: "a.db", Applied: "0a", LagTransactions: 6, SnapshotBytes: 3 << 20, SnapshotSent: 1 << 20},
			}},
			{NodeID: "n3", Remote: "10.0.0.3:5", Contact: time.Now().Add(-time.Minute)},
		},
	}}
	for _, c := range []struct {
		r    statusReport
		want []string
	}{
		{replica, []string{"role     replica", "passthrough", "1.5s", "2.0 MiB", "quorum:1,durable,5s (pending)  6 behind", "does not follow: disk full", `"c.db"`, "set aside: damaged", "first copy [===============               ]  50%, 1.0 MiB of 2.0 MiB"}},
		{primary, []string{"role     primary", "cached", "n2 10.0.0.2:5", "6, 1.0 MiB of a copy of 3.0 MiB are sent", "n3 10.0.0.3:5, gone for 1m", "max-lag:2s  writers wait", "in sync: n2; commits at levels quorum and archive wait for: n2 n3"}},
	} {
		var b strings.Builder
		if err := c.r.print(&b, false, false); err != nil {
			t.Fatal(err)
		}
		for _, w := range c.want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("no %q in\n%s", w, b.String())
			}
		}
	}
	if err := replica.fault(); err == nil || !strings.Contains(err.Error(), "d.db") {
		t.Errorf("fault is %v", err)
	}
	if err := primary.fault(); err != nil {
		t.Error(err)
	}
}
