package ltxlog

import (
	"math"
	"path/filepath"
	"strings"

	"github.com/superfly/ltx"
)

// MaxTXID is the largest TXID accepted, so that Max+1 never wraps.
const MaxTXID = math.MaxInt64

const (
	tempSuffix  = ".tmp"
	durableName = "durable"
)

func entryName(minTXID, maxTXID uint64) string {
	return ltx.FormatFilename(ltx.TXID(minTXID), ltx.TXID(maxTXID))
}

// parseEntryName accepts exactly the names that entryName makes of a valid range.
func parseEntryName(name string) (minTXID, maxTXID uint64, ok bool) {
	lo, hi, err := ltx.ParseFilename(name)
	if err != nil || lo == 0 || lo > hi || hi > MaxTXID {
		return 0, 0, false
	}
	return uint64(lo), uint64(hi), true
}

func isTempName(name string) bool { return strings.HasSuffix(name, tempSuffix) }

func (l *Log) path(name string) string { return filepath.Join(l.dir, name) }

func (l *Log) entryPath(e Entry) string { return l.path(entryName(e.Min, e.Max)) }
