package http

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/litefs/litefs"
)

// Info is what a node tells of itself at GET /info. Numbers of 64 bits are strings of 16 hexadecimal
// digits, for not every reader of JSON keeps them whole; the epoch is small.
type Info struct {
	ClusterID  string `json:"clusterID"`
	NodeID     string `json:"nodeID"`
	IsPrimary  bool   `json:"isPrimary"`
	Candidate  bool   `json:"candidate"`
	Role       string `json:"role"`                 // "primary", "replica" or "none"
	RoleState  string `json:"roleState,omitempty"`  // "follower", "candidate", "primary" or "draining", where roles move
	RoleReason string `json:"roleReason,omitempty"` // why a candidate does not ask for the lease
	PrimaryURL string `json:"primaryURL,omitempty"`
	Hostname   string `json:"hostname,omitempty"` // of the primary

	Primary *PrimaryInfo `json:"primary,omitempty"` // where LiteFS 0.5 has the hostname
	Epoch   uint64       `json:"epoch"`

	Path        string `json:"path,omitempty"` // of the data directory
	Mount       string `json:"mount,omitempty"`
	Passthrough bool   `json:"passthrough"`
	LogsSealed  bool   `json:"logsEncrypted,omitempty"` // what is new in them
	LagMillis   *int64 `json:"lagMillis"`               // null: never had all that the primary had

	Stale bool `json:"stale,omitempty"` // the copy of a replica is older than replica.max-staleness

	// InSync are the replicas that the lease record names as having every acknowledged transaction, Waited those that
	// commits at the levels quorum and archive wait for; on a primary.
	InSync []string `json:"inSync,omitempty"`
	Waited []string `json:"waitedFor,omitempty"`

	Databases []DatabaseInfo `json:"databases"`
	Failed    []FailedInfo   `json:"failed,omitempty"`   // set aside: not open
	Replicas  []ReplicaInfo  `json:"replicas,omitempty"` // on a primary
	Archives  []ArchiveInfo  `json:"archives,omitempty"` // on a primary with backup
	Seeded    *SeededInfo    `json:"seeded,omitempty"`   // of a start with an empty data directory and backup.seed
}

// SeededInfo is what a start has taken from an archive, in Info.
type SeededInfo struct {
	Databases int    `json:"databases"`
	Bytes     int64  `json:"bytes"`           // of their files
	Error     string `json:"error,omitempty"` // why some, or all, were left to the primary
}

// ArchiveInfo is one place where a primary archives, in Info.
type ArchiveInfo struct {
	Place     string `json:"place"`
	Databases int    `json:"databases"`      // that have transactions which the place lacks
	LagMillis int64  `json:"lagMillis"`      // since when the one that waits longest does; 0: none waits
	HeldBytes int64  `json:"heldBytes"`      // of the node's logs, that some place lacks
	Over      string `json:"over,omitempty"` // what happens because that is more than backup.hold
	Error     string `json:"error,omitempty"`
}

// DatabaseInfo is one database in Info.
type DatabaseInfo struct {
	ID       string `json:"id"` // litefs.FormatDBID
	Name     string `json:"name"`
	TXID     string `json:"txid"`
	Checksum string `json:"checksum"`

	Received string `json:"received,omitempty"` // TXID that is in the log
	Durable  string `json:"durable,omitempty"`  // TXID that is in the log and on disk

	PageSize   uint32 `json:"pageSize,omitempty"`
	Pages      uint32 `json:"pages,omitempty"`
	WALBytes   int64  `json:"walBytes"`
	LogEntries int    `json:"logEntries"`
	LogBytes   int64  `json:"logBytes"`

	Repairing string `json:"repairing,omitempty"` // what is being repaired
	Waiting   bool   `json:"waiting,omitempty"`   // for readers to leave its write-ahead log

	LoadBytes int64 `json:"loadBytes,omitempty"` // of its first copy, on the way here: those that have come
	LoadSize  int64 `json:"loadSize,omitempty"`

	Level        string `json:"level"`                  // what is promised of its commits: "async", or like "quorum:1,durable,5s", "max-lag:2s" or "archive:15s"
	LevelPending bool   `json:"levelPending,omitempty"` // the level waits for the last close of the write-ahead log that is open
	LevelSet     bool   `json:"levelSet,omitempty"`     // by POST /durability, and not by a rule of the configuration
	WritersHeld  bool   `json:"writersHeld,omitempty"`  // at level max-lag: no replica is close enough behind

	Lent     bool `json:"lent,omitempty"`     // a replica has the write lock of the primary
	Borrowed bool `json:"borrowed,omitempty"` // programs on this replica have it

	NotBorrowed string `json:"notBorrowed,omitempty"` // why not, when one wanted to write last

	Error string     `json:"error,omitempty"` // why it does not follow the primary
	Since *time.Time `json:"since,omitempty"` // when that began
}

// PrimaryInfo is what a node knows of its primary.
type PrimaryInfo struct {
	Hostname string `json:"hostname"`
}

// FailedInfo is a database that could not be opened.
type FailedInfo struct {
	Name  string `json:"name"`
	Error string `json:"error"`
}

// ReplicaInfo is a replica as its primary knows it.
type ReplicaInfo struct {
	NodeID    string                `json:"nodeID"`
	Remote    string                `json:"remote"`
	Connected bool                  `json:"connected"`
	Contact   time.Time             `json:"contact"`
	Databases []ReplicaDatabaseInfo `json:"databases"`
}

// ReplicaDatabaseInfo is how far a replica is with one database.
type ReplicaDatabaseInfo struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Received string `json:"received"`
	Durable  string `json:"durable"`
	Applied  string `json:"applied"`

	LagTransactions uint64 `json:"lagTransactions"`         // that are committed and not applied
	SnapshotBytes   int64  `json:"snapshotBytes,omitempty"` // of a copy of the database on its way
	SnapshotSent    int64  `json:"snapshotSent,omitempty"`
}

func (s *Server) handleInfo(w http.ResponseWriter, r *http.Request) {
	b, err := json.MarshalIndent(s.info(), "", "  ")
	if err != nil {
		s.refuse(w, r, http.StatusInternalServerError, fmt.Sprintf("encode: %v", err))
		return
	}
	s.answer(w, r, "application/json", append(b, '\n'))
}

func (s *Server) info() Info {
	st := s.src.Status()
	info := Info{
		ClusterID:   s.src.ClusterID(),
		NodeID:      s.src.NodeID(),
		IsPrimary:   s.src.IsPrimary(),
		Candidate:   s.opt.Candidate,
		Role:        st.Role.String(),
		PrimaryURL:  st.PrimaryURL,
		Hostname:    st.Hostname,
		Epoch:       s.src.Epoch(),
		Path:        st.DataDir,
		Mount:       st.MountDir,
		Passthrough: st.Passthrough,
		LogsSealed:  st.LogsSealed,
		Stale:       st.Stale,
		Databases:   []DatabaseInfo{},
	}
	if st.Hostname != "" {
		info.Primary = &PrimaryInfo{st.Hostname}
	}
	info.RoleState, info.RoleReason = s.src.RoleState()
	if st.Synced {
		ms := st.Lag.Milliseconds()
		info.LagMillis = &ms
	}
	for _, db := range st.Databases {
		info.Databases = append(info.Databases, databaseInfo(db))
	}
	info.InSync, info.Waited = st.InSync, st.Waited
	for name, err := range st.Failed {
		info.Failed = append(info.Failed, FailedInfo{name, err.Error()})
	}
	slices.SortFunc(info.Failed, func(a, b FailedInfo) int { return cmp.Compare(a.Name, b.Name) })
	if s := st.Seeded; s != nil {
		info.Seeded = &SeededInfo{s.Databases, s.Bytes, s.Err}
	}
	for _, a := range st.Archives {
		info.Archives = append(info.Archives, ArchiveInfo{a.Place, a.Databases, a.Lag.Milliseconds(), a.Held, a.Over, a.Err})
	}
	for _, r := range st.Replicas {
		info.Replicas = append(info.Replicas, replicaInfo(r, st.Databases))
	}
	return info
}

func databaseInfo(db litefs.DBStatus) DatabaseInfo {
	d := DatabaseInfo{
		ID:         litefs.FormatDBID(db.ID),
		Name:       db.Name,
		TXID:       hex16(db.Pos.TXID),
		Checksum:   hex16(db.Pos.Chksum),
		Received:   hex16(db.Received.TXID),
		Durable:    hex16(db.Durable.TXID),
		PageSize:   db.PageSize,
		Pages:      db.Pages,
		WALBytes:   db.WALSize,
		LogEntries: db.LogEntries,
		LogBytes:   db.LogBytes,
		Repairing:  db.Repairing,
	}
	d.Waiting = db.Waiting
	d.Level, d.LevelPending, d.LevelSet, d.WritersHeld = db.Level.String(), db.LevelPending, db.LevelSet, db.Held
	d.Lent, d.Borrowed, d.NotBorrowed = db.Lent, db.Borrowed, db.NotBorrowed
	if db.LoadSize > 0 {
		d.LoadBytes, d.LoadSize = db.LoadBytes, db.LoadSize
	}
	if db.Trouble != nil {
		d.Error, d.Since = db.Trouble.Error(), &db.Since
	}
	return d
}

func replicaInfo(r litefs.ReplicaStatus, dbs []litefs.DBStatus) ReplicaInfo {
	info := ReplicaInfo{
		NodeID: r.NodeID, Remote: r.Remote, Connected: r.Connected, Contact: r.Contact,
		Databases: []ReplicaDatabaseInfo{},
	}
	for _, db := range dbs {
		ack, told := r.Databases[db.ID]
		transfer, sending := r.Transfers[db.ID]
		if !told && !sending {
			continue // it may not want this one
		}
		d := ReplicaDatabaseInfo{
			ID: litefs.FormatDBID(db.ID), Name: db.Name,
			Received: hex16(ack.Received.TXID), Durable: hex16(ack.Durable.TXID), Applied: hex16(ack.Applied.TXID),
			SnapshotBytes: transfer.Size, SnapshotSent: transfer.Sent,
		}
		if db.Pos.TXID > ack.Applied.TXID {
			d.LagTransactions = db.Pos.TXID - ack.Applied.TXID
		}
		info.Databases = append(info.Databases, d)
	}
	return info
}

func hex16(n uint64) string { return fmt.Sprintf("%016x", n) }
