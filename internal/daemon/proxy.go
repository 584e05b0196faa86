package daemon

import (
	"fmt"
	"path"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/proxy"
)

// proxyNode is the node in the words of the proxy.
type proxyNode struct{ store *litefs.Store }

func (n proxyNode) IsPrimary() bool            { return n.store.IsPrimary() }
func (n proxyNode) Epoch() uint64              { return n.store.Epoch() }
func (n proxyNode) PrimaryURL() string         { return n.store.PrimaryURL() }
func (n proxyNode) PrimaryHostname() string    { return n.store.PrimaryHost() }
func (n proxyNode) Lag() (time.Duration, bool) { return n.store.Lag() }

func (n proxyNode) TXID(id uint32) uint64 {
	if db := n.store.DB(id); db != nil {
		return db.TXID()
	}
	return 0
}

func (n proxyNode) Positions(patterns []string, settle bool) (map[uint32]uint64, error) {
	m := make(map[uint32]uint64)
	for _, db := range n.store.DBs() {
		if !matches(patterns, db.Name()) {
			continue
		}
		if settle {
			if err := db.Settle(); err != nil {
				return nil, fmt.Errorf("%s: %w", db.Name(), err)
			}
		}
		m[db.ID()] = db.TXID()
	}
	return m, nil
}

// matches reports whether name is one of the patterns, which the configuration
// has checked.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}

func (n proxyNode) Hurry(id uint32) { n.store.Hurry(id) }

func (n proxyNode) Watch() (<-chan struct{}, func()) {
	sub := n.store.Subscribe()
	return sub.NotifyCh(), func() { n.store.Unsubscribe(sub) }
}

// listenProxy makes the proxy, when there is one, and binds its address.
func (n *Node) listenProxy() error {
	c := n.cfg.Proxy
	if c.IsZero() {
		return nil
	}
	n.proxy = proxy.New(proxyNode{n.store}, proxy.Options{
		Addr:              c.Addr,
		Listener:          n.inheritedListener(keptProxy, c.Addr),
		Target:            c.Target,
		Databases:         c.Databases,
		MaxLag:            c.MaxLag,
		Passthrough:       c.Passthrough,
		AlwaysForward:     c.AlwaysForward,
		Write:             proxyMode(c.Write),
		RedirectURL:       c.RedirectURL,
		PrimaryTimeout:    c.PrimaryRedirectTimeout,
		WaitTimeout:       c.WaitTimeout,
		TargetTimeout:     c.TargetTimeout,
		ReadTimeout:       c.ReadTimeout,
		ReadHeaderTimeout: c.ReadHeaderTimeout,
		WriteTimeout:      c.WriteTimeout,
		IdleTimeout:       c.IdleTimeout,
		Token:             string(n.cfg.HTTP.Token),
		TLS:               n.client.TLSConfig,
		Debug:             c.Debug,
		Logger:            n.logger,
	})
	if err := n.proxy.Listen(); err != nil {
		return err
	}
	return n.keepListener(keptProxy, c.Addr, n.proxy.Listener())
}

func proxyMode(write string) proxy.Mode {
	switch write {
	case config.WriteFlyReplay:
		return proxy.FlyReplay
	case config.WriteRedirect:
		return proxy.Redirect
	}
	return proxy.Forward
}
