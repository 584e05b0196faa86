// Package seal encrypts what lies in stores that others can read, and finds out when they changed it.
// docs/encryption.md has the whole picture.
//
//	Keys      the operator's: they never encrypt anything but data keys
//	DataKey   a random one for each database, kept wrapped beside what it encrypts
//	Body      the sealed form of an object; Reader opens it
//
// Everything is AES-256-GCM and HKDF-SHA256 of the standard library. No key ever encrypts two things: each
// object, and each wrapped key, has one that is derived with a random salt of its own.
package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const keySize = 32

// Keys are the operator's, of which the first one wraps and all unwrap.
type Keys struct{ keys []operatorKey }

type operatorKey struct {
	id     string
	secret []byte
}

// ParseKeys reads keys: one a line, 64 hexadecimal digits each; empty lines and lines that begin with # are
// left out. The text stands in no error.
func ParseKeys(text string) (*Keys, error) {
	var k Keys
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secret, err := hex.DecodeString(line)
		if err != nil || len(secret) != keySize {
			return nil, fmt.Errorf("line %d is no key: want 64 hexadecimal digits, as openssl rand -hex 32 prints them", i+1)
		}
		id, err := hkdf.Key(sha256.New, secret, nil, "litefs key id", 8)
		if err != nil {
			return nil, err
		}
		k.keys = append(k.keys, operatorKey{hex.EncodeToString(id), secret})
	}
	if len(k.keys) == 0 {
		return nil, errors.New("there is no key: want a line of 64 hexadecimal digits, as openssl rand -hex 32 prints them")
	}
	return &k, nil
}

// Current is the id of the key that wraps. It tells nothing about the key.
func (k *Keys) Current() string { return k.keys[0].id }

// DataKey encrypts the objects of one database.
type DataKey struct {
	ID     [16]byte // random; stands in each object
	secret [keySize]byte
}

// NewDataKey draws a data key.
func NewDataKey() (d DataKey, err error) {
	_, err = rand.Read(d.ID[:])
	if err == nil {
		_, err = rand.Read(d.secret[:])
	}
	return d, err
}

// record is a wrapped data key, as it is kept.
type record struct {
	Format    int    `json:"format"`
	ID        string `json:"id"`        // of the data key
	WrappedBy string `json:"wrappedBy"` // id of the operator's key
	Salt      string `json:"salt"`
	Key       string `json:"key"`
}

const recordFormat = 1

// ErrWrongKey: the operator's key that a data key is wrapped with is not among those that were given.
var ErrWrongKey = errors.New("its key is not among those that were given")

// Wrap makes the record of a data key. It can be unwrapped under the same owner only.
func (k *Keys) Wrap(d DataKey, owner string) ([]byte, error) {
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	r := record{Format: recordFormat, ID: hex.EncodeToString(d.ID[:]), WrappedBy: k.keys[0].id, Salt: hex.EncodeToString(salt)}
	aead, err := k.keys[0].aead(salt)
	if err != nil {
		return nil, err
	}
	r.Key = hex.EncodeToString(aead.Seal(nil, nonce(0, true), d.secret[:], r.bound(owner)))
	return json.MarshalIndent(r, "", "  ")
}

// bound is what a wrapped key goes with.
func (r record) bound(owner string) []byte { return []byte(r.ID + " " + owner) }

// Unwrap reads a record. wrappedBy is the id of the operator's key that opened it.
func (k *Keys) Unwrap(b []byte, owner string) (d DataKey, wrappedBy string, err error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return d, "", fmt.Errorf("%w: no record of a key: %w", ErrDamaged, err)
	}
	if r.Format != recordFormat {
		return d, "", fmt.Errorf("a record of a key of format %d, this litefs knows %d", r.Format, recordFormat)
	}
	id, err1 := hex.DecodeString(r.ID)
	salt, err2 := hex.DecodeString(r.Salt)
	wrapped, err3 := hex.DecodeString(r.Key)
	if errors.Join(err1, err2, err3) != nil || len(id) != idSize || len(salt) != saltSize {
		return d, "", fmt.Errorf("%w: no record of a key", ErrDamaged)
	}
	for _, key := range k.keys {
		if key.id != r.WrappedBy {
			continue
		}
		aead, err := key.aead(salt)
		if err != nil {
			return d, "", err
		}
		secret, err := aead.Open(nil, nonce(0, true), wrapped, r.bound(owner))
		if err != nil || len(secret) != keySize {
			return d, "", fmt.Errorf("%w: the record of a key", ErrDamaged)
		}
		return DataKey{[16]byte(id), [keySize]byte(secret)}, key.id, nil
	}
	return d, "", fmt.Errorf("%w: it is wrapped with key %s, the first of those given is %s", ErrWrongKey, r.WrappedBy, k.keys[0].id)
}

func (k operatorKey) aead(salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.secret, salt, "litefs wrapped key 1", keySize)
	if err != nil {
		return nil, err
	}
	return newGCM(key)
}
