// Package logkey opens logs that are encrypted, or not, with the keys of their node.
//
//	<dir>/log-key    the log's data key, wrapped with one of the operator's (package seal)
//	<dir>/ltx        the log (package ltxlog), or what else the logs in dir are called
//
// Where log-key is gone nobody can read the log any more. It is bound to the database that it names, and to the last
// transaction that may lie in the clear: that of the log when encryption was switched on. While it is off that is every
// one, so what was written then is believed later. docs/encryption.md has the whole picture.
package logkey

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/seal"
	"github.com/litefs/litefs/internal/vfs"
)

// Name is the file of a log's key.
const Name = "log-key"

var (
	// ErrNoKey: the operator's key that a log needs is not among those that were given.
	ErrNoKey = errors.New("the log is encrypted and its key was not given: name it in data.log-key-file, data.log-key-command, LITEFS_LOG_KEY or -key-file")
	// ErrDestroyed: the log is encrypted, and its key is not there.
	ErrDestroyed = errors.New("the log is encrypted and its key has been destroyed: nobody can read it any more")
)

// Keys are those of a node. nil: none was given, and logs lie in the clear.
type Keys struct {
	Operator *seal.Keys
	Off      bool // what is new lies in the clear; what is encrypted can be read
}

// On reports whether what is new is encrypted.
func (k *Keys) On() bool { return k != nil && !k.Off }

// record is the file of a log's key.
type record struct {
	Database  string          `json:"database"`         // its id
	PlainUpTo uint64          `json:"plainUpTo,string"` // last transaction that may lie in the clear
	Key       json.RawMessage `json:"key"`
}

// owner is what the wrapped key is bound to.
func (r record) owner() string {
	return fmt.Sprintf("log of database %s, in the clear up to %016x", r.Database, r.PlainUpTo)
}

func read(dir string) (r record, err error) {
	path := filepath.Join(dir, Name)
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s is damaged: no record of a key: %w", path, err)
	}
	return r, nil
}

// unwrap gives the key of a log, and with which of the operator's it is wrapped.
func (k *Keys) unwrap(dir string, r record) (d seal.DataKey, by string, err error) {
	path := filepath.Join(dir, Name)
	if k == nil {
		return d, "", fmt.Errorf("%s: %w", path, ErrNoKey)
	}
	d, by, err = k.Operator.Unwrap(r.Key, r.owner())
	if errors.Is(err, seal.ErrWrongKey) {
		return d, "", fmt.Errorf("%s: %w: %w", path, ErrNoKey, err)
	}
	if err != nil {
		return d, "", fmt.Errorf("%s is damaged: %w", path, err)
	}
	return d, by, nil
}

// Sealing returns what a log in dir is read with; nil when it has no key, and is in the clear. database is the id that it
// has to be of; "": any. Nothing is changed.
func (k *Keys) Sealing(dir, database string) (*ltxlog.Sealing, error) {
	r, err := read(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d, _, err := k.unwrap(dir, r)
	if err != nil {
		return nil, err
	}
	if database != "" && r.Database != database {
		return nil, fmt.Errorf("%s is the key of database %s, want %s", filepath.Join(dir, Name), r.Database, database)
	}
	return &ltxlog.Sealing{Key: d, PlainUpTo: r.PlainUpTo, Off: k.Off}, nil
}

// Open opens the log of a database in dir that is called name, to be written. Encryption of it is switched on, or off, as
// the keys say, durably: before the first entry that lies in the other way.
func (k *Keys) Open(dir, name, database string, opt ltxlog.Options) (*ltxlog.Log, error) {
	s, err := k.Sealing(dir, database)
	if err != nil {
		return nil, err
	}
	if !k.On() && s != nil && s.PlainUpTo < ltxlog.MaxTXID {
		s.PlainUpTo = ltxlog.MaxTXID
		if err := k.put(dir, database, s); err != nil {
			return nil, err
		}
	}
	log, err := open(dir, name, s, opt)
	if err == nil && k.On() && (s == nil || s.PlainUpTo == ltxlog.MaxTXID) {
		if err = k.switchOn(dir, database, s, log); err != nil {
			return nil, errors.Join(err, log.Close())
		}
	}
	return log, err
}

// switchOn has a log that was just opened encrypted from here on. What is there so far may lie in the clear, and how far
// that goes is known now that it has recovered.
func (k *Keys) switchOn(dir, database string, s *ltxlog.Sealing, log *ltxlog.Log) (err error) {
	if s == nil {
		s = &ltxlog.Sealing{}
		if s.Key, err = seal.NewDataKey(); err != nil {
			return err
		}
	}
	head, _ := log.Head()
	s.PlainUpTo = head.Max
	if err := k.put(dir, database, s); err != nil {
		return err
	}
	log.SealFromHere(*s)
	return nil
}

// OpenAsIs is Open without the switching: for a log that is only read, and for a copy of one.
func (k *Keys) OpenAsIs(dir, name, database string, opt ltxlog.Options) (*ltxlog.Log, error) {
	s, err := k.Sealing(dir, database)
	if err != nil {
		return nil, err
	}
	return open(dir, name, s, opt)
}

func open(dir, name string, s *ltxlog.Sealing, opt ltxlog.Options) (*ltxlog.Log, error) {
	opt.Sealing = s
	log, err := ltxlog.Open(filepath.Join(dir, name), opt)
	if errors.Is(err, ltxlog.ErrSealed) {
		err = fmt.Errorf("%s is gone: %w", filepath.Join(dir, Name), ErrDestroyed)
	}
	return log, err
}

// put writes the key of a log, wrapped with the first of the operator's.
func (k *Keys) put(dir, database string, s *ltxlog.Sealing) error {
	r := record{Database: database, PlainUpTo: s.PlainUpTo}
	var err error
	if r.Key, err = k.Operator.Wrap(s.Key, r.owner()); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return write(dir, append(b, '\n'))
}

// Copy gives a copy of logs, which is in to, the key of those in from, durably. Without one there is nothing to do.
func Copy(from, to string) error {
	b, err := os.ReadFile(filepath.Join(from, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return write(to, b)
}

// write replaces the file of a key, durably and as a whole.
func write(dir string, b []byte) error { return durable.Replace(vfs.OS(), filepath.Join(dir, Name), b) }
