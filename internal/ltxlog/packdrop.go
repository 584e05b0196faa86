package ltxlog

import (
	"errors"
	"slices"
)

// cutPack drops what lies behind a listed entry in its pack: the file is replaced by a copy, so that who reads an entry
// that goes can read on. The caller makes the new name durable, and holds change and sync.
func (l *Log) cutPack(last Entry, where place) error {
	p := where.pack
	if err := l.replacePack(p, where.end(), true); err != nil {
		return err
	}
	p.size, p.max = where.end(), last.Max
	return nil // a pack that is suspect stays so: what is not synced was not verified
}

// cutBehind drops what lies behind the last of entries, which are the list, in a pack: entries that were dropped, and those
// that had been merged into one that was. When that fails, the next change of the log tries again before it does anything
// else. The caller holds change and sync.
func (l *Log) cutBehind(entries []Entry) error {
	for _, e := range slices.Backward(entries) {
		where := l.placeOf(e)
		if where.pack == nil {
			continue
		}
		if where.pack.max == e.Max {
			return nil
		}
		err := l.cutPack(e, where)
		if err != nil {
			l.change.cut, l.change.copied = place{pack: where.pack, at: where.end()}, true
		}
		return err
	}
	return nil
}

// clearCut does what takeBackPacked or cutBehind could not do. The caller holds change, and not sync.
func (l *Log) clearCut() error {
	where := l.change.cut
	if where.pack == nil {
		return nil
	}
	if l.change.copied {
		l.sync.Lock()
		defer l.sync.Unlock()
		if err := l.replacePack(where.pack, where.at, true); err != nil {
			return err
		}
		l.change.dropped = true // the old file must not be found again
	} else if err := l.cutTail(where); err != nil {
		return err
	}
	l.change.cut, l.change.copied = place{}, false
	return nil
}

// replacePack puts a copy of the first n bytes of a pack in its place.
func (l *Log) replacePack(p *pack, n int64, sync bool) error {
	p.write.Lock()
	defer p.write.Unlock()
	p.write.sealed = true
	err := l.copyFile(p.name, rewriteTemp, n, sync)
	if err == nil {
		err = l.fs.Rename(l.path(rewriteTemp), l.path(p.name))
	}
	if err != nil {
		return errors.Join(err, l.remove(rewriteTemp))
	}
	l.names.Store(true)
	return nil
}

// retirePacked takes an entry that is not in the list any more from its pack, and removes the pack when it was the last
// one. On an error it is as before. The caller holds change and sync.
func (l *Log) retirePacked(e Entry, p *pack) error {
	if l.liveIn(p) == 1 {
		if err := l.removePack(p); err != nil {
			return err
		}
	}
	l.leavePack(e, p)
	return nil
}

func (l *Log) removePack(p *pack) error {
	if p == l.change.pack {
		l.change.pack = nil
	}
	if err := p.seal(); err != nil {
		l.logger.Warn("close transaction log file", "path", l.path(p.name), "err", err)
	}
	if err := l.remove(p.name); err != nil {
		return err
	}
	delete(l.sync.suspect, p.name)
	return nil
}

// leavePack notes that an entry does not lie in its pack any more.
func (l *Log) leavePack(e Entry, p *pack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mu.places, e.span())
	p.live--
}

// listAt notes where an entry lies. The caller holds mu.
func (l *Log) listAt(e Entry, where place) {
	if where.pack == nil {
		return
	}
	if l.mu.places == nil {
		l.mu.places = map[span]place{}
	}
	l.mu.places[e.span()] = where
	where.pack.live++
}

// placeOf returns where a listed entry lies.
func (l *Log) placeOf(e Entry) place {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.places[e.span()]
}

func (l *Log) liveIn(p *pack) int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return p.live
}

// fileOf returns the name of the file in which an entry lies.
func (l *Log) fileOf(e Entry) string {
	if p := l.placeOf(e).pack; p != nil {
		return p.name
	}
	return entryName(e.Min, e.Max)
}
