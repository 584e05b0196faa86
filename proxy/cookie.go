package proxy

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// cookieName is LiteFS 0.5's; what it holds is not.
const cookieName = "__txid"

// maxCookieDBs bounds a cookie to about 900 bytes.
const maxCookieDBs = 32

// seen is what a client has to find when it reads: its own writes.
type seen struct {
	epoch uint64
	txids map[uint32]uint64 // by database id

	// primary sends every read to the primary: there were too many databases to name.
	primary bool
}

// merge returns what a client has to see that had to see old, and then wrote s.
// Positions of another epoch say nothing about those of this one, and s is the later.
func (s seen) merge(old seen) seen {
	if old.epoch == s.epoch && !s.primary {
		s.txids = maps.Clone(s.txids)
		for id, txid := range old.txids {
			s.txids[id] = max(s.txids[id], txid)
		}
		s.primary = old.primary
	}
	if s.primary || len(s.txids) > maxCookieDBs {
		return seen{epoch: s.epoch, primary: true}
	}
	return s
}

// reached reports whether a node has all of s; at returns where it is with a database.
func (s seen) reached(at func(id uint32) (txid uint64)) bool {
	for range s.missing(at) {
		return false
	}
	return !s.primary
}

// missing gives the databases with which a node is not where s is.
func (s seen) missing(at func(id uint32) (txid uint64)) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for id, txid := range s.txids {
			if at(id) < txid && !yield(id) {
				return
			}
		}
	}
}

// cookieVersion is the first field of a cookie: what follows may change.
const cookieVersion = "1"

// encode returns the value of the cookie: version, epoch and positions, and a
// signature of all that. It has only characters that a cookie may have.
func (s seen) encode(key []byte) string {
	fields := []string{cookieVersion, strconv.FormatUint(s.epoch, 16)}
	if s.primary {
		fields = append(fields, "primary")
	}
	for _, id := range slices.Sorted(maps.Keys(s.txids)) {
		fields = append(fields, strconv.FormatUint(uint64(id), 16)+"-"+strconv.FormatUint(s.txids[id], 16))
	}
	text := strings.Join(fields, ".")
	return text + "~" + sign(key, text)
}

// decodeSeen returns what a cookie says; false if it was not made with this key.
func decodeSeen(key []byte, value string) (seen, bool) {
	text, mac, ok := strings.Cut(value, "~")
	if !ok || !hmac.Equal([]byte(mac), []byte(sign(key, text))) {
		return seen{}, false
	}
	fields := strings.Split(text, ".")
	if len(fields) < 2 || fields[0] != cookieVersion {
		return seen{}, false
	}
	epoch, err := strconv.ParseUint(fields[1], 16, 64)
	if err != nil {
		return seen{}, false
	}
	s := seen{epoch: epoch, txids: make(map[uint32]uint64)}
	for _, f := range fields[2:] {
		if f == "primary" {
			s.primary = true
			continue
		}
		a, b, _ := strings.Cut(f, "-")
		id, err1 := strconv.ParseUint(a, 16, 32)
		txid, err2 := strconv.ParseUint(b, 16, 64)
		if err1 != nil || err2 != nil {
			return seen{}, false
		}
		s.txids[uint32(id)] = txid
	}
	return s, true
}

// sign returns 128 bits of HMAC-SHA-256, in base64.
func sign(key []byte, text string) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text)) // a hash never fails
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// CookieKey derives the key that signs cookies from what all nodes of a cluster
// share. Without a credential it keeps cookies of one cluster from another, no more.
func CookieKey(token, clusterID string) []byte {
	h := hmac.New(sha256.New, []byte(token))
	h.Write([]byte("litefs proxy cookie 1\x00" + clusterID))
	return h.Sum(nil)
}
