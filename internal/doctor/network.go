package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
)

// askTimeout bounds each question to another machine.
const askTimeout = 5 * time.Second

// ports looks whether the addresses can be listened at.
func ports(ctx context.Context, o Options) (a []Finding) {
	addrs := [][2]string{{"http.addr", o.Config.HTTP.Addr}}
	if o.Config.Proxy.Addr != "" {
		addrs = append(addrs, [2]string{"proxy.addr", o.Config.Proxy.Addr})
	}
	for _, addr := range addrs {
		a = append(a, port(ctx, addr[0], addr[1], config.IsMounted(o.Config.Fuse.Dir)))
	}
	return a
}

func port(ctx context.Context, key, addr string, running bool) Finding {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && running:
		return ok(key, addr+" is in use: a node is mounted at fuse.dir")
	case err != nil:
		return fail(key, err.Error(), "stop what uses the address, or choose another one")
	}
	if err := ln.Close(); err != nil {
		return fail(key, err.Error(), "")
	}
	return ok(key, addr+" is free")
}

// cluster asks the lease server who the primary is, and the primary who it is.
func cluster(ctx context.Context, o Options) []Finding {
	url := o.Config.Lease.AdvertiseURL
	if o.Config.Lease.Type != config.LeaseStatic {
		f, primary := leaseServer(ctx, o)
		if f.Level == Fail || primary == "" {
			return []Finding{f}
		}
		return []Finding{f, primaryNode(ctx, o, primary)}
	}
	if o.Config.Lease.Candidate || url == "" {
		return []Finding{ok("lease", "static: this node is the primary")}
	}
	return []Finding{ok("lease", "static: the primary is "+url), primaryNode(ctx, o, url)}
}

func leaseServer(ctx context.Context, o Options) (f Finding, primary string) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	check := o.Config.Lease.Type
	primary, err := daemon.AskLease(ctx, o.Config, o.Logger)
	switch {
	case errors.Is(err, litefs.ErrNoPrimary):
		return ok(check, "answers: no node has the lease"), ""
	case err != nil:
		return fail(check, err.Error(), "start the server, or mend lease."+check+".url"), ""
	}
	return ok(check, "answers: "+primary+" has the lease"), primary
}

func primaryNode(ctx context.Context, o Options, url string) Finding {
	const check = "primary"
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client := http.NewClient(nil, o.Token)
	if files := http.TLSFiles(o.Config.HTTP.TLS); !files.IsZero() {
		if err := client.UseTLS(files, o.Logger); err != nil {
			return fail(check, err.Error(), "mend http.tls")
		}
	}
	info, err := client.Info(ctx, url)
	if err != nil {
		return fail(check, err.Error(), "start the node, let its port through, and use the same http.token on every node")
	}
	if !info.IsPrimary {
		return warn(check, url+" is a node and says that it is not the primary", "mend lease.advertise-url, or wait for the election")
	}
	return ok(check, fmt.Sprintf("%s answers: node %s, %d databases", url, info.NodeID, len(info.Databases)))
}
