package deps

// module is the path every package of the program begins with.
const module = "github.com/litefs/litefs"

// edges lists, for each package, the packages of this module it may import. Arrows go down only: an
// edge (fuse, http, lease) never imports another edge, an algorithm never imports the root that
// orchestrates it, and siblings meet in the layer above them. Paths are relative to the module; "" is
// the root. A package that is not here fails the test: decide first where it belongs.
var edges = map[string][]string{
	// Pure: bytes in, values out.
	"sqlitefile":      {},
	"internal/isocrc": {},

	// Algorithms, one idea each.
	"internal/vfs":     {},
	"internal/durable": {"internal/vfs"},
	"internal/watch":   {},
	"internal/role":    {},
	"internal/locktab": {},
	"internal/halt":    {},
	"internal/pagesum": {"internal/isocrc", "sqlitefile"},
	"internal/capture": {"sqlitefile"},

	"internal/walwrite": {"sqlitefile"},
	"internal/peer":     {"sqlitefile"},
	"internal/ltxlog":   {"internal/durable", "internal/isocrc", "internal/seal", "internal/vfs", "sqlitefile"},

	// The archive: its format, and what keeps and reads it.
	"internal/archive":   {"internal/isocrc"},
	"internal/catalog":   {"internal/archive", "internal/objstore"},
	"internal/seal":      {},
	"internal/sealstore": {"internal/archive", "internal/catalog", "internal/objstore", "internal/seal"},
	"internal/restore":   {"internal/archive", "internal/catalog", "internal/durable", "internal/objstore", "internal/pagesum"},
	"internal/ship":      {"", "internal/archive", "internal/catalog", "internal/objstore"},

	"internal/objstore":         {"internal/durable", "internal/vfs"},
	"internal/objstore/s3":      {"internal/objstore"},
	"internal/objstore/objtest": {"internal/objstore"},

	"internal/logkey":    {"internal/durable", "internal/ltxlog", "internal/seal", "internal/vfs"},
	"internal/lostfound": {"internal/durable", "internal/logkey", "internal/ltxlog", "internal/vfs", "sqlitefile"},
	"internal/dbfile":    {"internal/pagesum", "sqlitefile"},

	// The façade: orchestrates the algorithms.
	"": {"internal/vfs", "internal/durable", "internal/watch", "internal/locktab", "internal/pagesum", "internal/capture", "internal/walwrite", "internal/peer", "internal/ltxlog", "internal/logkey", "internal/lostfound", "internal/dbfile", "internal/role", "internal/halt", "sqlitefile"},

	// Edges: the kernel, the network, the lease. They meet in the daemon.
	"fuse":         {},
	"http":         {""},
	"lease/static": {""},
	"proxy":        {},

	// Lease services, and what their clients and tests need.
	"lease/consul":         {"", "internal/boottime", "internal/leasehttp", "internal/leaseterm"},
	"lease/etcd":           {"", "internal/boottime", "internal/leasehttp", "internal/leaseterm"},
	"lease/cas":            {"", "internal/boottime", "internal/leaseterm"},
	"lease/nats":           {"lease/cas"}, // a store for it: the lease itself is one and the same
	"lease/kubernetes":     {"lease/cas", "internal/leasehttp"},
	"lease/bucket":         {"lease/cas", "internal/objstore"},
	"lease/leasetest":      {"", "internal/leaseserver"},
	"internal/boottime":    {},
	"internal/leasehttp":   {},
	"internal/leaseterm":   {},
	"internal/leaseserver": {"internal/childnode"},

	// A node, and the tools around it.
	"internal/config":    {},
	"internal/supervise": {},
	"internal/guardian":  {},
	"internal/daemon":    {"", "fuse", "http", "lease/static", "lease/consul", "lease/etcd", "lease/nats", "lease/kubernetes", "lease/bucket", "internal/objstore/s3", "proxy", "internal/config", "internal/vfs", "internal/archive", "internal/logkey", "internal/objstore", "internal/seal", "internal/sealstore", "internal/ship", "internal/catalog", "internal/restore"},
	"internal/adopt":     {"internal/vfs", "sqlitefile"},
	"internal/doctor":    {"", "fuse", "http", "internal/config", "internal/daemon"},
	"internal/sqlapp":    {},
	"internal/childnode": {},
	"internal/verify":    {"internal/vfs", "internal/ltxlog", "internal/logkey", "internal/capture", "internal/pagesum", "sqlitefile"},
	"internal/demo":      {"internal/childnode", "internal/sqlapp", "internal/verify"},
	"internal/bench":     {"internal/childnode", "internal/config", "internal/daemon", "internal/leaseserver", "internal/sqlapp"},

	// The command: the only place that ends the process.
	"cmd/litefs": {
		"", "http", "internal/daemon", "internal/config", "internal/supervise", "internal/guardian", "internal/dbfile", "internal/sqlapp",
		"internal/verify", "internal/demo", "internal/bench", "internal/adopt", "internal/doctor", "internal/lostfound", "internal/durable",
		"internal/archive", "internal/restore", "internal/catalog", "internal/ship", "internal/seal", "internal/sealstore", "internal/logkey",
	},

	// Tests only.
	"internal/deps":       {},
	"internal/browser":    {},
	"internal/faultnet":   {},
	"internal/netns":      {},
	"internal/sqlitetest": {"internal/sqlapp"},
	"internal/e2e":        {},
	"internal/cutdisk":    {},
	"internal/kubefake":   {},
}

// doors lists who may import an outside module: one package knows it, so it can be replaced there.
var doors = map[string][]string{
	"github.com/hanwen/go-fuse":        {"fuse", "internal/cutdisk"},
	"github.com/mattn/go-sqlite3":      {"internal/sqlapp"},
	"go.yaml.in/yaml":                  {"internal/config"},
	"github.com/superfly/ltx":          {"", "http", "internal/archive", "internal/ltxlog", "internal/pagesum", "internal/verify"},
	"github.com/pierrec/lz4":           {"http", "internal/archive", "internal/ltxlog"},
	"github.com/aws":                   {"internal/objstore/s3"},
	"gopkg.in/natefinch/lumberjack.v2": {"cmd/litefs"},
	"github.com/nats-io/nats.go":       {"lease/nats"},
	"golang.org/x/sys":                 anyPackage,
	"golang.org/x/sync":                anyPackage,
	"golang.org/x/net":                 {"http"},
}

// anyPackage stands for every package.
var anyPackage = []string{"*"}

// testOnly packages may be imported by tests alone.
var testOnly = []string{"internal/sqlitetest", "internal/e2e", "internal/deps", "lease/leasetest", "internal/kubefake", "internal/faultnet", "internal/netns", "internal/browser", "internal/objstore/objtest"}

// pure packages hold decisions that can lose data. They read no clock, disk, socket or random number,
// so that a million of their inputs can be replayed in a minute.
var pure = []string{"sqlitefile", "internal/isocrc", "internal/capture", "internal/role", "internal/halt"}

// impure is what a pure package may not import.
var impure = []string{"os", "net", "net/http", "sync", "context", "log/slog", "math/rand", "math/rand/v2", "time", "syscall", "golang.org/x/sys/unix"}

// maxLines bounds a file: a longer one holds two ideas.
const maxLines = 800
