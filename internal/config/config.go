// Package config is the configuration of one node: what a file, the
// environment and the command line say, checked as a whole before anything on
// the machine is touched.
//
// It reads the keys of LiteFS 0.5 and of LiteFS 0.1 (mount-dir, http.addr).
// A key that is unknown is an error with its line and the nearest known key; a
// key whose feature this program does not have is refused by its name. No key
// is ever ignored: an operator who wrote it relies on it.
//
//	cfg, err := config.Load("litefs.yml", config.Source{})   // a file
//	cfg, err := config.Default("/srv/app", config.Source{})  // no file: static primary
//
// Every error matches ErrInvalid and is one line: what is wrong, where, and
// what to do.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"
)

// ErrInvalid is matched by every error that the operator mends by changing
// the configuration or the command line, and by running again.
var ErrInvalid = errors.New("invalid configuration")

// Invalid marks err as a fault of the configuration: its text stays as it is
// and errors.Is(_, ErrInvalid) holds. Other packages use it for what only they
// can find out, such as a data directory of another program. nil stays nil.
func Invalid(err error) error {
	if err == nil {
		return nil
	}
	return &invalidError{err}
}

type invalidError struct{ err error }

func (e *invalidError) Error() string        { return e.err.Error() }
func (e *invalidError) Unwrap() error        { return e.err }
func (e *invalidError) Is(target error) bool { return target == ErrInvalid }

// Defaults, in the words of the file. They are LiteFS 0.5's, except the
// address: without a credential nothing beyond this machine may connect.
const (
	DefaultPort                     = "20202"
	DefaultRetention                = 10 * time.Minute
	DefaultRetentionMonitorInterval = time.Minute
	DefaultReconnectDelay           = time.Second
	DefaultDemoteDelay              = 10 * time.Second
	DefaultLeaseKey                 = "litefs/primary"
	DefaultLeaseTTL                 = 10 * time.Second
	DefaultLockDelay                = time.Second
	DefaultNATSBucket               = "litefs"
	DefaultKubernetesName           = "litefs"
	DefaultAccountDir               = "/var/run/secrets/kubernetes.io/serviceaccount"
	DefaultRollForwardTimeout       = 10 * time.Second
)

// Lease types.
const (
	LeaseStatic = "static" // roles are fixed by the file
	LeaseConsul = "consul"
	LeaseEtcd   = "etcd"
	LeaseNATS   = "nats"

	LeaseKubernetes = "kubernetes"
	LeaseS3         = "s3"
)

// Log formats.
const (
	LogText = "text"
	LogJSON = "json"
)

// Config is one node's configuration after expansion, defaults and checks.
type Config struct {
	Fuse  Fuse
	Data  Data
	HTTP  HTTP
	Lease Lease
	Proxy Proxy
	Log   Log
	Trace Trace

	Backup Backup

	// Durability gives databases a level; the first rule that matches counts, async is that of the others.
	Durability []DurabilityRule

	// ReplicaReadOnly: databases of a replica do not open for writing.
	ReplicaReadOnly bool

	// MaxStaleness is how old the copy of a replica may be; 0: any. ServeStale: an older one is served nevertheless.
	MaxStaleness time.Duration
	ServeStale   bool

	// HaltDatabases are patterns, as path.Match has them, of the databases for which a replica can borrow the primary's
	// write lock while programs have them open.
	HaltDatabases []string

	// Exec is run once the mount is ready: all but the last to their end, one
	// after the other; the last one is supervised, and its exit ends the node.
	Exec []Command

	// ExitOnError false keeps the process up after a fault, for a look at it.
	ExitOnError bool

	// StrictVerify compares all pages of a database with their checksums after each transaction.
	StrictVerify bool

	// SkipSync starts Exec before a replica has caught up with its primary.
	SkipSync bool
}

// DurabilityRule is what is promised of transactions of the databases that match.
type DurabilityRule struct {
	Match   string // pattern, as path.Match has it
	Level   string // LevelAsync, LevelQuorum, LevelMaxLag or LevelArchive
	N       int    // of LevelQuorum: replicas, from 1 to 16
	Memory  bool   // of LevelQuorum: ack: memory
	Timeout time.Duration
	Lag     time.Duration // of LevelMaxLag: how far the best replica may be behind
}

// Levels of durability.
const (
	LevelAsync   = "async"
	LevelQuorum  = "quorum"
	LevelMaxLag  = "max-lag"
	LevelArchive = "archive"
)

// Fuse says where the databases are seen and how the kernel serves them.
type Fuse struct {
	Dir         string // mount point, absolute
	AllowOther  bool   // other users of the machine may enter
	Debug       bool   // log every request
	DaemonLocks bool   // the kernel asks for each lock ("daemon"), and keeps none itself ("kernel")
	ForwardDir  string // second mount point, absolute, whose locks come to the daemon; "": none
	Passthrough bool   // use kernel passthrough where it is to be had ("auto")
	Guardian    bool   // the mount outlives the daemon
}

// Data says where the databases and their log lie.
type Data struct {
	Dir                      string        // absolute; neither in Fuse.Dir nor around it
	Retention                time.Duration // log entries older than this may go
	RetentionMonitorInterval time.Duration // how often that is looked at; > 0
	ScrubInterval            time.Duration // between two scrubs of all databases in the background; 0: none
	MaxSize                  int64         // bytes of log a database may keep; 0: no limit

	// LogKeys encrypt the logs (package seal); "": LogKeyCommand prints them. Both "": they lie in the clear.
	LogKeys       Secret
	LogKeyCommand string
	LogInClear    bool // what is new lies in the clear nevertheless
}

// LogKeyVariable is the environment variable that holds keys of the logs.
const LogKeyVariable = "LITEFS_LOG_KEY"

// HTTP is the port that other nodes and the commands talk to.
type HTTP struct {
	Addr  string // host:port
	Token Secret // shared by all nodes; "": Addr is loopback, or the lease server has one

	// AdminToken is the operator's; "": Token opens his calls too.
	AdminToken Secret

	TLS TLS
}

// TLS names PEM files; the zero value is no TLS. Cert and Key come together; a
// primary with a CA has them.
type TLS struct{ Cert, Key, CA string }

// Lease says who may write.
type Lease struct {
	Type string // LeaseStatic, LeaseConsul, LeaseEtcd, LeaseNATS, LeaseKubernetes, LeaseS3

	// Hostname and AdvertiseURL are the primary's under a static lease (the URL is empty only on a
	// primary without followers), and this node's own with a lease server. Hostname is not empty.
	Hostname     string
	AdvertiseURL string

	// Candidate is the role under a static lease: true is the primary. With a lease server, it may
	// become the primary.
	Candidate bool

	// Promote asks for the role of the primary once this node has caught up.
	Promote bool

	Consul Consul // of LeaseConsul
	Etcd   Etcd   // of LeaseEtcd
	NATS   NATS   // of LeaseNATS

	Kubernetes Kubernetes // of LeaseKubernetes
	S3         S3         // of LeaseS3

	// Databases are patterns, as path.Match has them, of the databases that a
	// node that is no candidate follows; empty: all.
	Databases []string

	ReconnectDelay time.Duration // between two attempts to reach the primary; > 0
	// RollForwardTimeout is how long a primary whose power was cut waits for
	// followers that do not answer; 0: it asks none.
	RollForwardTimeout time.Duration

	DemoteDelay time.Duration // a primary that gave up its role is no candidate for as long
}

// Consul is where the lease is kept.
type Consul struct {
	URL       Secret // its password is the ACL token, its path goes before Key
	Key       string
	TTL       time.Duration // from 1 s to 24 h
	LockDelay time.Duration // from 1 ms to 1 min
}

// Etcd is where the lease is kept.
type Etcd struct {
	URL Secret // its user and password log in, its path goes before Key
	Key string
	TTL time.Duration // whole seconds, from 2 s to 24 h
}

// NATS is where the lease is kept.
type NATS struct {
	URL         Secret // of one server, or of several with commas between; user and password, or a token, log in
	Credentials string // file of a user; "": none
	Bucket      string
	Replicas    int // of a bucket that is made: from 1 to 5
	Key         string
	TTL         time.Duration // from 1 s to 24 h
	LockDelay   time.Duration // from 1 ms to 1 min
}

// Kubernetes is where the lease is kept.
type Kubernetes struct {
	URL        string        // of the API server; not empty with LeaseKubernetes
	AccountDir string        // with the files token and ca.crt
	Namespace  string        // not empty with LeaseKubernetes
	Name       string        // of the Lease
	TTL        time.Duration // from 1 s to 24 h
	LockDelay  time.Duration // from 1 ms to 1 min
}

// S3 is where the lease is kept.
type S3 struct {
	URL       string // s3://bucket or s3://bucket/prefix
	Endpoint  string // of the service; "": AWS's
	Region    string // "": the service's default
	AccessKey string // "": AWS_ACCESS_KEY_ID
	SecretKey Secret // "": AWS_SECRET_ACCESS_KEY
	Key       string
	TTL       time.Duration // from 1 s to 24 h
	LockDelay time.Duration // from 1 ms to 1 min
}

// Log says how the daemon speaks, on standard error.
type Log struct {
	Format    string // LogText or LogJSON
	Timestamp bool   // text lines begin with the time
	Debug     bool
}

// Trace is a file with all that can be said, whatever Log leaves out.
type Trace struct {
	Enabled  bool
	Path     string // absolute; "": there is none
	MaxSize  int    // megabytes, after which another file is begun
	MaxCount int    // files that are kept beside it
	Compress bool   // those with gzip
}

// Live reports whether there is a trace.
func (t Trace) Live() bool { return t.Enabled && t.Path != "" }

// Command is a program and its arguments: already split, never split again.
type Command struct {
	Argv []string // at least one, the first not empty

	// IfCandidate and IfPrimary leave the command out on a node that may not
	// become the primary, or is not the primary when its turn comes.
	IfCandidate, IfPrimary bool

	// Restart says when the command is started again after its end:
	// RestartNever, RestartOnFailure, RestartAlways. Only the last one of a list
	// may be.
	Restart string
}

// When a command is started again.
const (
	RestartNever     = "never"
	RestartOnFailure = "on-failure"
	RestartAlways    = "always"
)

// Secret is a credential. It prints as "[secret]" wherever a value is
// formatted or logged; string(s) is the credential itself.
type Secret string

// String hides the credential; it is empty when there is none.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[secret]"
}

// GoString hides the credential from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the credential from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// defaults is the configuration of an empty file.
func defaults() *Config {
	return &Config{
		Fuse: Fuse{Passthrough: true},
		Data: Data{
			Retention:                DefaultRetention,
			RetentionMonitorInterval: DefaultRetentionMonitorInterval,
		},
		Lease: Lease{
			Type:               LeaseStatic,
			Candidate:          true,
			ReconnectDelay:     DefaultReconnectDelay,
			RollForwardTimeout: DefaultRollForwardTimeout,
			DemoteDelay:        DefaultDemoteDelay,
			Consul:             Consul{Key: DefaultLeaseKey, TTL: DefaultLeaseTTL, LockDelay: DefaultLockDelay},
			Etcd:               Etcd{Key: DefaultLeaseKey, TTL: DefaultLeaseTTL},
			NATS:               NATS{Bucket: DefaultNATSBucket, Replicas: 1, Key: DefaultLeaseKey, TTL: DefaultLeaseTTL, LockDelay: DefaultLockDelay},
			S3:                 S3{Key: DefaultLeaseKey, TTL: DefaultLeaseTTL, LockDelay: DefaultLockDelay},
			Kubernetes:         Kubernetes{AccountDir: DefaultAccountDir, Name: DefaultKubernetesName, TTL: DefaultLeaseTTL, LockDelay: DefaultLockDelay},
		},
		Backup:      backupDefaults(),
		Proxy:       proxyDefaults(),
		Log:         Log{Format: LogText},
		Trace:       Trace{Enabled: true, MaxSize: 64, MaxCount: 8, Compress: true},
		ExitOnError: true,
	}
}

// DataDirFor is where the data lies when no data.dir is given: beside the
// mount point DIR/NAME in DIR/.NAME.litefs, so that both are on one disk and
// the data is found again without a file.
func DataDirFor(mountDir string) string {
	return filepath.Join(filepath.Dir(mountDir), "."+filepath.Base(mountDir)+".litefs")
}

// NodeURL checks a node's URL and gives it without a slash at its end.
func NodeURL(s string) (string, error) {
	return strings.TrimRight(s, "/"), checkURL(s)
}

// EnvToken is the credential in the environment that opens most: the operator's, else the nodes'; ""
// when there is none.
func EnvToken(src Source) (Secret, error) {
	token, err := envToken(src, AdminTokenVariable)
	if token == "" && err == nil {
		token, err = envToken(src, TokenVariable)
	}
	return token, err
}

func envToken(src Source, variable string) (Secret, error) {
	s, ok := src.ensureDefaults().LookupEnv(variable)
	if !ok {
		return "", nil
	}
	if err := checkToken(s); err != nil {
		return "", Invalid(fmt.Errorf("the environment variable %s %w", variable, err))
	}
	return Secret(s), nil
}

// ParseToken checks a credential that comes from elsewhere than the file.
func ParseToken(s string) (Secret, error) { return Secret(s), checkToken(s) }
