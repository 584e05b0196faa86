package daemon

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/objstore/s3"
	"github.com/litefs/litefs/lease/bucket"
	"github.com/litefs/litefs/lease/consul"
	"github.com/litefs/litefs/lease/etcd"
	"github.com/litefs/litefs/lease/kubernetes"
	"github.com/litefs/litefs/lease/nats"
	"github.com/litefs/litefs/lease/static"
)

// newLeaser is this node's end of the lease that the configuration names. The lease that the process
// before this one had is not waited for.
func newLeaser(cfg *config.Config, logger *slog.Logger) (litefs.Leaser, error) {
	l := cfg.Lease
	former, err := litefs.FormerLease(cfg.Data.Dir)
	if err != nil {
		logger.Warn("this node's own lease is waited for like another's", "error", err)
	}
	remember := func(name string) {
		if err := litefs.RememberLease(cfg.Data.Dir, name); err != nil {
			logger.Warn("after a crash this node's own lease will be waited for like another's", "error", err)
		}
	}
	switch l.Type {
	case config.LeaseConsul:
		return consul.New(consul.Options{
			URL: string(l.Consul.URL), Key: l.Consul.Key, TTL: l.Consul.TTL, LockDelay: l.Consul.LockDelay,
			Hostname: l.Hostname, AdvertiseURL: l.AdvertiseURL, Follower: !l.Candidate,
			Former: former, Remember: remember,
		})
	case config.LeaseEtcd:
		return etcd.New(etcd.Options{
			URL: string(l.Etcd.URL), Key: l.Etcd.Key, TTL: l.Etcd.TTL,
			Hostname: l.Hostname, AdvertiseURL: l.AdvertiseURL, Follower: !l.Candidate,
			Former: former, Remember: remember,
		})
	case config.LeaseNATS:
		return nats.New(nats.Options{
			URL: string(l.NATS.URL), Credentials: l.NATS.Credentials, Bucket: l.NATS.Bucket, Replicas: l.NATS.Replicas,
			Key: l.NATS.Key, TTL: l.NATS.TTL, LockDelay: l.NATS.LockDelay,
			Hostname: l.Hostname, AdvertiseURL: l.AdvertiseURL, Follower: !l.Candidate,
			Former: former, Remember: remember,
		})
	case config.LeaseKubernetes:
		return kubernetes.New(kubernetes.Options{
			URL: l.Kubernetes.URL, Dir: l.Kubernetes.AccountDir, Namespace: l.Kubernetes.Namespace, Name: l.Kubernetes.Name,
			TTL: l.Kubernetes.TTL, LockDelay: l.Kubernetes.LockDelay,
			Hostname: l.Hostname, AdvertiseURL: l.AdvertiseURL, Follower: !l.Candidate,
			Former: former, Remember: remember,
		})
	case config.LeaseS3:
		name, prefix := l.S3.Bucket()
		objects, err := s3.New(s3.Options{
			Bucket: name, Prefix: prefix, Endpoint: l.S3.Endpoint, Region: l.S3.Region,
			AccessKey: l.S3.AccessKey, SecretKey: string(l.S3.SecretKey),
		})
		if err != nil {
			return nil, err
		}
		return bucket.New(bucket.Options{
			Objects: objects, Key: l.S3.Key, TTL: l.S3.TTL, LockDelay: l.S3.LockDelay,
			Check:    func(ctx context.Context) error { return objects.Check(ctx, l.S3.Key+"/check-"+rand.Text()) },
			Hostname: l.Hostname, AdvertiseURL: l.AdvertiseURL, Follower: !l.Candidate,
			Former: former, Remember: remember,
		})
	case config.LeaseStatic:
		if l.Candidate {
			return static.NewPrimary(l.AdvertiseURL)
		}
		return static.NewFollower("", l.AdvertiseURL)
	}
	return nil, fmt.Errorf("lease.type %q has no lease", l.Type)
}

// secretBytes is how many random bytes a secret that is drawn here has.
const secretBytes = 32

// settleSecret finds the secret by which the nodes of the cluster know each other, where the
// configuration has none: the first node that comes draws one and stores it beside the lease, where the
// others read it. Whoever may read the lease's key may be a node. A node that has it in its data
// directory asks nobody: it can serve its mount while the lease server is away.
func (n *Node) settleSecret(ctx context.Context) error {
	reg, ok := n.leaser.(litefs.Registry)
	if !ok || n.cfg.HTTP.Token != "" {
		return nil
	}
	known, err := litefs.ReadSecret(n.cfg.Data.Dir)
	if err != nil {
		return err
	}
	got := []byte(known)
	if known == "" {
		// Nobody knows this node yet: without the server it can do nothing.
		b := make([]byte, secretBytes)
		if _, err := rand.Read(b); err != nil {
			return fmt.Errorf("draw a secret: %w", err)
		}
		offer := base64.RawStdEncoding.EncodeToString(b)
		err := n.untilAnswered(ctx, func() (err error) {
			got, err = reg.SetOnce(ctx, litefs.SecretName, []byte(offer))
			return err
		})
		if err != nil {
			return err
		}
		n.newSecret = string(got)
	}
	token, err := config.ParseToken(string(got))
	if err != nil {
		return fmt.Errorf("the secret beside %v %w", reg, err)
	}
	cfg := *n.cfg
	cfg.HTTP.Token = token
	n.cfg = &cfg
	return nil
}

// untilAnswered asks the lease server until it answers or ctx ends. A server that is not there yet is
// no fault of this node's configuration: after a power cut it may just come up later.
func (n *Node) untilAnswered(ctx context.Context, ask func() error) error {
	const remindAfter = time.Minute
	var last string
	var said time.Time
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("stopped while waiting for %v: %w", n.leaser, context.Cause(ctx))
		}
		if err.Error() != last || time.Since(said) >= remindAfter {
			last, said = err.Error(), time.Now()
			n.logger.Warn("waiting for the lease server: nothing is mounted before it answers", "lease", fmt.Sprint(n.leaser), "error", err, "every", n.cfg.Lease.ReconnectDelay)
		}
		select {
		case <-ctx.Done():
		case <-time.After(n.cfg.Lease.ReconnectDelay):
		}
	}
}

// awaitLeaseServer waits until it is known who has the lease, or that nobody has. A node that knows its cluster
// need not: it serves reads meanwhile. On a mount that is taken over applications wait for an answer, and may read
// whoever that is.
func (n *Node) awaitLeaseServer(ctx context.Context) error {
	if _, ok := n.leaser.(litefs.Registry); !ok || n.inherited != nil {
		return nil
	}
	if id, err := litefs.ReadClusterID(n.cfg.Data.Dir); err != nil || id != "" && n.newSecret == "" {
		return err
	}
	return n.untilAnswered(ctx, func() error {
		_, err := n.leaser.PrimaryURL(ctx)
		if errors.Is(err, litefs.ErrNoPrimary) {
			return nil
		}
		return err
	})
}

// AskLease asks the lease that cfg names for the URL of the primary, and tries whether the service is fit to
// keep one, where that is not certain. It takes no part. The error is litefs.ErrNoPrimary if nobody has the
// lease.
func AskLease(ctx context.Context, cfg *config.Config, logger *slog.Logger) (url string, err error) {
	l, err := newLeaser(cfg, logger)
	if err != nil {
		return "", config.Invalid(err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if c, ok := l.(interface{ Check(context.Context) error }); ok {
		if err := c.Check(ctx); err != nil {
			return "", err
		}
	}
	return l.PrimaryURL(ctx)
}
