package http

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs"
)

// handleMetrics answers in the text format of Prometheus, version 0.0.4. Names that LiteFS 0.5 has mean
// the same here; what passthrough makes uncountable (writes to the files) is left out.
func (s *Server) handleMetrics(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, "text/plain; version=0.0.4; charset=utf-8", []byte(s.metrics()))
}

func (s *Server) metrics() string {
	st, stats := s.src.Status(), s.src.Stats()
	var m metricsWriter
	m.one("litefs_is_primary", "gauge", "1 on the primary.", boolValue(st.Role == litefs.RolePrimary))
	m.one("litefs_db_count", "gauge", "Databases that are open.", float64(len(st.Databases)))
	m.one("litefs_db_failed_count", "gauge", "Databases that were set aside.", float64(len(st.Failed)))
	if st.Synced { // before, there is no number that is true
		m.one("litefs_lag_seconds", "gauge", "Time since this node had all that the primary had.", st.Lag.Seconds())
	}
	m.one("litefs_subscriber_count", "gauge", "Listeners for changes: replicas and readers of events.", float64(st.Subscribers))
	m.one("litefs_http_stream_count", "gauge", "Replicas that are connected.", float64(connected(st.Replicas)))

	m.one("litefs_commits_total", "counter", "Local transactions that were captured.", float64(stats.Commits.Load()))
	m.one("litefs_captures_total", "counter", "Log entries written for them.", float64(stats.Captures.Load()))
	m.one("litefs_capture_errors_total", "counter", "Captures that failed and were tried again.", float64(stats.CaptureErrors.Load()))
	m.one("litefs_net_gaps_total", "counter", "Captures that found pages changed behind their back.", float64(stats.NetGaps.Load()))
	m.one("litefs_barriers_total", "counter", "Checkpoints that waited for a capture.", float64(stats.Barriers.Load()))
	m.one("litefs_applied_total", "counter", "Log entries applied.", float64(stats.Applied.Load()))
	m.one("litefs_streamed_from_memory_total", "counter", "Log entries that replicas got from memory.", float64(stats.ReadLive.Load()))
	m.one("litefs_streamed_from_disk_total", "counter", "Log entries that were read from the disk for replicas.", float64(stats.ReadLog.Load()))
	m.one("litefs_apply_errors_total", "counter", "Times that a database could not follow the primary.", float64(stats.ApplyErrors.Load()))
	m.one("litefs_rejoins_total", "counter", "Databases brought to the primary by the pages that differ.", float64(stats.Rejoins.Load()))
	m.one("litefs_rejoin_pages_total", "counter", "Pages that differed.", float64(stats.RejoinPages.Load()))
	m.one("litefs_rejoin_bytes_total", "counter", "Bytes moved to find and fetch them.", float64(stats.RejoinBytes.Load()))
	m.one("litefs_rejoin_snapshots_total", "counter", "Times that a whole snapshot was needed instead.", float64(stats.RejoinSnapshots.Load()))
	m.one("litefs_scrubs_total", "counter", "Databases that were scrubbed.", float64(stats.Scrubs.Load()))
	m.one("litefs_scrub_faults_total", "counter", "Faults that this found.", float64(stats.ScrubFaults.Load()))
	m.one("litefs_rolled_forward_total", "counter", "Transactions lost with the power that came back from followers.", float64(stats.RolledForward.Load()))
	m.one("litefs_forwarded_commits_total", "counter", "Transactions of replicas that were committed here, under the write lock.", float64(stats.Forwarded.Load()))
	m.head("litefs_write_lock_requests_total", "counter", "Requests to the primary for its write locks, and under them.")
	for _, c := range []struct {
		call string
		n    *atomic.Uint64
	}{
		{"acquire", &stats.HaltCalls.Acquire}, {"renew", &stats.HaltCalls.Renew}, {"commit", &stats.HaltCalls.Commit},
		{"outcome", &stats.HaltCalls.Outcome}, {"release", &stats.HaltCalls.Release},
	} {
		m.sample("litefs_write_lock_requests_total", float64(c.n.Load()), "call", c.call)
	}
	m.one("litefs_tails_kept_total", "counter", "Tails of forked histories that went into lost+found.", float64(stats.TailsKept.Load()))
	m.histogram("litefs_commit_to_apply_seconds", "Time from a commit on the primary to its visibility here.", &stats.ApplyLatency)

	perDB := func(name, typ, help string, value func(litefs.DBStatus) float64) {
		m.head(name, typ, help)
		for _, db := range st.Databases {
			m.sample(name, value(db), "db", db.Name)
		}
	}
	perDB("litefs_db_txid", "gauge", "Last transaction.", func(db litefs.DBStatus) float64 { return float64(db.Pos.TXID) })
	perDB("litefs_db_ltx_count", "gauge", "Entries of the log.", func(db litefs.DBStatus) float64 { return float64(db.LogEntries) })
	perDB("litefs_db_ltx_bytes", "gauge", "Bytes of the log.", func(db litefs.DBStatus) float64 { return float64(db.LogBytes) })
	perDB("litefs_db_wal_bytes", "gauge", "Bytes of the write-ahead log.", func(db litefs.DBStatus) float64 { return float64(db.WALSize) })
	perDB("litefs_db_repairing", "gauge", "1 for a database that is being repaired.", func(db litefs.DBStatus) float64 { return boolValue(db.Repairing != "") })
	perDB("litefs_db_commit_count", "counter", "Local transactions that were captured.", func(db litefs.DBStatus) float64 { return float64(db.Commits) })
	perDB("litefs_db_ltx_reap_count", "counter", "Entries of the log that were too old or too many.", func(db litefs.DBStatus) float64 { return float64(db.Reaped) })
	perDB("litefs_db_lag_seconds", "gauge", "Time from the last transaction's commit on the primary to its visibility here.", func(db litefs.DBStatus) float64 { return db.ApplyLatency.Seconds() })
	perDB("litefs_db_in_trouble", "gauge", "1 for a database that does not follow the primary.", func(db litefs.DBStatus) float64 { return boolValue(db.Trouble != nil) })

	perPlace := func(name, typ, help string, value func(litefs.ArchiveStatus) float64) {
		if len(st.Archives) == 0 {
			return
		}
		m.head(name, typ, help)
		for _, a := range st.Archives {
			m.sample(name, value(a), "place", a.Place)
		}
	}
	perPlace("litefs_archive_lag_seconds", "gauge", "Since when the database that waits longest has transactions which the archive lacks.", func(a litefs.ArchiveStatus) float64 { return a.Lag.Seconds() })
	perPlace("litefs_archive_behind_count", "gauge", "Databases that have transactions which the archive lacks.", func(a litefs.ArchiveStatus) float64 { return float64(a.Databases) })
	perPlace("litefs_archive_held_bytes", "gauge", "Bytes of the logs that some place lacks; the same for all places.", func(a litefs.ArchiveStatus) float64 { return float64(a.Held) })
	perPlace("litefs_archive_over_hold", "gauge", "1 while the archive lacks more than backup.hold.", func(a litefs.ArchiveStatus) float64 { return boolValue(a.Over != "") })
	perPlace("litefs_archive_failing", "gauge", "1 while the last attempt failed.", func(a litefs.ArchiveStatus) float64 { return boolValue(a.Err != "") })
	perPlace("litefs_archive_objects_total", "counter", "Objects written.", func(a litefs.ArchiveStatus) float64 { return float64(a.Puts) })
	perPlace("litefs_archive_bytes_total", "counter", "Bytes in them.", func(a litefs.ArchiveStatus) float64 { return float64(a.Bytes) })
	perPlace("litefs_archive_requests_total", "counter", "Requests of all kinds.", func(a litefs.ArchiveStatus) float64 { return float64(a.Requests) })

	m.head("litefs_replica_connected", "gauge", "1 for a replica that is connected.")
	for _, r := range st.Replicas {
		m.sample("litefs_replica_connected", boolValue(r.Connected), "node", r.NodeID)
	}
	m.head("litefs_replica_lag_transactions", "gauge", "Transactions that a replica has not applied.")
	for _, r := range st.Replicas {
		for _, db := range replicaInfo(r, st.Databases).Databases {
			m.sample("litefs_replica_lag_transactions", float64(db.LagTransactions), "node", r.NodeID, "db", db.Name)
		}
	}
	return m.String()
}

func connected(replicas []litefs.ReplicaStatus) (n int) {
	for _, r := range replicas {
		if r.Connected {
			n++
		}
	}
	return n
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metricsWriter writes the text format: of each metric its head, then its samples.
type metricsWriter struct{ strings.Builder }

func (m *metricsWriter) head(name, typ, help string) {
	fmt.Fprintf(m, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, typ)
}

// sample writes a value with labels, given as names and values in turn.
func (m *metricsWriter) sample(name string, value float64, labels ...string) {
	m.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		m.WriteString([]string{"{", ","}[min(i, 1)])
		fmt.Fprintf(m, `%s="%s"`, labels[i], labelEscapes.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		m.WriteString("}")
	}
	m.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (m *metricsWriter) one(name, typ, help string, value float64) {
	m.head(name, typ, help)
	m.sample(name, value)
}

func (m *metricsWriter) histogram(name, help string, h *litefs.LatencyHistogram) {
	m.head(name, "histogram", help)
	buckets, sum := h.Counts()
	var n uint64
	for i, bound := range litefs.ApplyLatencyBounds {
		n += buckets[i]
		m.sample(name+"_bucket", float64(n), "le", seconds(bound))
	}
	n += buckets[len(buckets)-1]
	m.sample(name+"_bucket", float64(n), "le", "+Inf")
	m.sample(name+"_sum", sum.Seconds())
	m.sample(name+"_count", float64(n))
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'g', -1, 64) }
