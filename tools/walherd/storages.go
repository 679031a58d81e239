package main

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/storage/limit"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// storages are the configured storages in order of preference, and what is
// known of their health. The caller closes them.
type storages struct {
	set    *failover.Set
	target string
}

// openStorages opens every configured storage. write is whether they have to
// take writes to be of use; limited applies the network rate limit, which WAL
// traffic is exempt from.
func (a *app) openStorages(ctx context.Context, write, limited bool) (*storages, error) {
	buckets, err := a.buckets(ctx, limited)
	if err != nil {
		return nil, err
	}
	f := &a.set.Failover
	opt := failover.Options{
		Check: f.Check == "true" || f.Check == "" && len(buckets) > 1, Write: write, CheckSize: int64(f.CheckSize),
		Timeout: f.CheckTimeout, Lifetime: f.CacheLifetime, AliveLimit: f.CacheAliveLimit, DeadLimit: f.CacheDeadLimit,
		CachePath: failover.CachePath(cmp.Or(os.Getenv("HOME"), os.TempDir()), write), Log: a.log,
	}
	for _, b := range buckets {
		opt.Members = append(opt.Members, failover.Member{Name: b.name, Bucket: b.bucket, Probe: b.probe, ID: b.id})
	}
	set, err := failover.Open(opt)
	if err != nil {
		return nil, err
	}
	return &storages{set: set, target: a.set.General.TargetStorage}, nil
}

// reading starts a command that only reads, and closes the storages after it.
func (a *app) reading(cmd *cobra.Command, do func(*storages) error) error {
	if err := a.start(cmd.Context(), cmd); err != nil {
		return err
	}
	if err := a.pickStorage(cmd); err != nil {
		return err
	}
	stores, err := a.openStorages(cmd.Context(), false, false)
	if err != nil {
		return err
	}
	defer stores.close()
	return do(stores)
}

// writer is the first storage that takes writes, or the one that was named.
func (s *storages) writer(ctx context.Context) (*repo.Repo, error) {
	m, err := s.set.Writer(ctx, s.target)
	if err != nil {
		return nil, err
	}
	return repo.New(m.Bucket, m.Name), nil
}

// readers are the storages that can be read, or the one that was named.
func (s *storages) readers(ctx context.Context) ([]*repo.Repo, error) {
	members, err := s.set.Readers(ctx, s.target)
	if err != nil {
		return nil, err
	}
	repos := make([]*repo.Repo, len(members))
	for i, m := range members {
		repos[i] = repo.New(m.Bucket, m.Name)
	}
	return repos, nil
}

// down names the storages that could not be asked.
func (s *storages) down(ctx context.Context) (names []string) {
	for _, st := range s.set.Statuses(ctx) {
		if st.State == failover.Dead && (s.target == "" || strings.EqualFold(s.target, st.Name)) {
			names = append(names, st.Name)
		}
	}
	return names
}

func (s *storages) close() { s.set.Close() }

// bucketOf opens the storage of a configuration: the store, below its prefix,
// with the limit and the retries around it.
func (a *app) bucketOf(ctx context.Context, set *settings.Settings, limited bool) (storage.Bucket, error) {
	where, err := set.Storage()
	if err != nil {
		return nil, err
	}
	b, again, err := a.store(ctx, set, where)
	if err != nil {
		return nil, err
	}
	if c, ok := b.(io.Closer); ok {
		a.opened = append(a.opened, c)
	}
	if where.Prefix != "" {
		if b, err = storage.Sub(b, where.Prefix); err != nil {
			return nil, fmt.Errorf("setting WALG_STORAGE_PREFIX: %w", err)
		}
	}
	if n := set.General.NetworkRateLimit; limited && n > 0 && !a.turbo {
		bytes := rate.NewLimiter(rate.Limit(n), int(n))
		b = limit.New(b, bytes, bytes)
	}
	again.Log = a.log
	return retry.New(a.metered(b), again), nil
}

// namedBucket is one configured storage.
type namedBucket struct {
	name   string
	bucket storage.Bucket
	// probe is the same storage without retries, for health checks.
	probe storage.Bucket
	// id changes with the storage's settings.
	id string
}

// buckets opens every configured storage, the primary first.
func (a *app) buckets(ctx context.Context, limited bool) ([]namedBucket, error) {
	primary, err := a.named(ctx, failover.Primary, a.set, limited)
	if err != nil {
		return nil, err
	}
	all := []namedBucket{primary}
	for _, name := range slices.Sorted(maps.Keys(a.set.Failover.Storages)) {
		set, err := a.set.ForStorage(name)
		if err != nil {
			return nil, err
		}
		b, err := a.named(ctx, name, set, limited)
		if err != nil {
			return nil, fmt.Errorf("storage %s: %w", name, err)
		}
		all = append(all, b)
	}
	return all, nil
}

func (a *app) named(ctx context.Context, name string, set *settings.Settings, limited bool) (namedBucket, error) {
	where, err := set.Storage()
	if err != nil {
		return namedBucket{}, err
	}
	b, err := a.bucketOf(ctx, set, limited)
	if err != nil {
		return namedBucket{}, err
	}
	out := namedBucket{name: name, bucket: b, probe: b}
	if r, ok := b.(*retry.Bucket); ok {
		out.probe = r.Unwrap()
	}
	// Of a file storage this is WAL-G's hash, so that both share what they
	// know; of the others it only has to change with the place.
	config := fmt.Sprintf(`fs{"RootPath":%q}`, path.Join(where.Location, where.Prefix))
	if where.Kind != settings.KindFile {
		config = fmt.Sprintf("%s %s %s %s", where.Kind, where.Location, where.Prefix, set.S3.Endpoint)
	}
	sum := md5.Sum([]byte(config))
	out.id = hex.EncodeToString(sum[:])
	return out, nil
}
