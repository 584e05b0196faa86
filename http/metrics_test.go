package http

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs"
)

func TestMetrics(t *testing.T) {
	src := newFakeSource(`a "quoted"\name.db`)
	src.commit(1, "a1", "a2")
	src.stats.NetGaps.Add(3)
	src.stats.ApplyLatency.Observe(-time.Second)
	src.stats.ApplyLatency.Observe(3 * time.Millisecond)
	src.stats.ApplyLatency.Observe(time.Hour)
	conn := src.replicas.Connect("replica1", "127.0.0.1:1")
	conn.Acked(litefs.AckStreamFrame{DBID: 1, Applied: posAt(1, 1)})
	s := newServer(src, Options{Addr: "127.0.0.1:0", Logger: discard}, fastLimits())
	got := s.metrics()
	for _, line := range []string{
		"# TYPE litefs_is_primary gauge",
		"litefs_is_primary 1",
		"litefs_lag_seconds 0",
		"litefs_net_gaps_total 3",
		"litefs_http_stream_count 1",
		"litefs_subscriber_count 2",
		`litefs_db_commit_count{db="a \"quoted\"\\name.db"} 7`,
		`litefs_db_ltx_reap_count{db="a \"quoted\"\\name.db"} 5`,
		`litefs_db_lag_seconds{db="a \"quoted\"\\name.db"} 0.002`,
		`litefs_db_txid{db="a \"quoted\"\\name.db"} 2`,
		`litefs_replica_lag_transactions{node="replica1",db="a \"quoted\"\\name.db"} 1`,
		`litefs_commit_to_apply_seconds_bucket{le="0.001"} 1`,
		`litefs_commit_to_apply_seconds_bucket{le="0.005"} 2`,
		`litefs_commit_to_apply_seconds_bucket{le="60"} 2`,
		`litefs_commit_to_apply_seconds_bucket{le="+Inf"} 3`,
		"litefs_commit_to_apply_seconds_sum 3600.003",
		"litefs_commit_to_apply_seconds_count 3",
	} {
		if !strings.Contains("\n"+got, "\n"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, got)
		}
	}
	conn.Close()
	if got := s.metrics(); !strings.Contains(got, "litefs_replica_connected{node=\"replica1\"} 0\n") {
		t.Errorf("a replica that is gone is not told of in\n%s", got)
	}
}

// What the dashboard and the alert rules ask for is there.
func TestMetrics_Monitoring(t *testing.T) {
	src := newFakeSource("a.db")
	src.primary = false
	conn := src.replicas.Connect("n2", "10.0.0.2:1")
	defer conn.Close()
	srv := testServer(t, src, "", fastLimits())
	told := srv.metrics()
	name := regexp.MustCompile(`litefs_[a-z_]+`)
	for _, file := range []string{"grafana.json", "alerts.yaml"} {
		b, err := os.ReadFile(filepath.Join("..", "packaging", "monitoring", file))
		if err != nil {
			t.Fatal(err)
		}
		names := name.FindAllString(string(b), -1)
		if len(names) < 5 {
			t.Errorf("%s: %d names of metrics", file, len(names))
		}
		for _, n := range names {
			if !strings.Contains(told, "\n"+n+"{") && !strings.Contains(told, "\n"+n+" ") && !strings.Contains(told, "# TYPE "+n+" ") {
				t.Errorf("%s asks for %s, which the server does not tell", file, n)
			}
		}
	}
}
