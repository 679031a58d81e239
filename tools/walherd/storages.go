package main

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"
	"gopkg.in/yaml.v3"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/storage/fs"
	"github.com/walherd/walherd/storage/limit"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/s3"
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
	return retry.New(b, again), nil
}

// store opens the store itself and tells how often what it cannot retry on its
// own is worth another try.
func (a *app) store(ctx context.Context, set *settings.Settings, where settings.Storage) (storage.Bucket, retry.Options, error) {
	switch where.Kind {
	case settings.KindFile:
		b, err := fs.Open(where.Location)
		return b, retry.Options{}, err
	case settings.KindS3:
		opt, err := s3Options(set, where.Location)
		if err != nil {
			return nil, retry.Options{}, err
		}
		b, err := s3.Open(ctx, opt)
		// Requests and broken bodies are retried within the store.
		return b, retry.Options{Tries: 2}, err
	}
	return nil, retry.Options{}, fmt.Errorf("storage %s is not supported yet: set WALG_FILE_PREFIX or WALG_S3_PREFIX", where.Kind)
}

// s3Options says in the store's words what the settings say.
func s3Options(set *settings.Settings, location string) (s3.Options, error) {
	s := &set.S3
	opt := s3.Options{
		Endpoint: s.Endpoint, PathStyle: s.ForcePathStyle, DualStack: s.DualStack, Region: s.Region,
		EndpointSource: s.EndpointSource, EndpointPort: s.EndpointPort, EndpointProtocol: s.EndpointProtocol,
		AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey, SessionToken: s.SessionToken,
		CAFile: s.CACertFile, NoExpectContinue: s.Disable100Continue,
		StorageClass: s.StorageClass, SSE: s.SSE, SSEKMSKeyID: s.SSEKMSID,
		RetentionPeriod: time.Duration(s.RetentionPeriod) * time.Second, RetentionMode: s.RetentionMode,
		PartSize: int64(s.MaxPartSize), UploadConcurrency: s.UploadConcurrency,
		MaxRetries: cmp.Or(s.MaxRetries, -1), Resumes: cmp.Or(s.RangeMaxRetries, -1),
		MinThrottleDelay: time.Duration(s.MinThrottlingRetryDelay) * time.Millisecond,
		MaxThrottleDelay: time.Duration(s.MaxThrottlingRetryDelay) * time.Millisecond,
		ListV1:           s.UseListObjectsV1, DeleteBatch: s.DeleteBatchSize,
		Versioning: s3.Versioning(s.EnableVersioning), Validate: !s.SkipValidation,
	}
	var err error
	if opt.Bucket, opt.Prefix, err = s3.ParsePrefix(location); err != nil {
		return opt, fmt.Errorf("setting WALG_S3_PREFIX: %w", err)
	}
	if s.WebIdentityTokenFile == "" {
		// With a token file the SDK assumes the role on its own.
		opt.RoleARN, opt.RoleSessionName = s.RoleARN, s.RoleSessionName
	}
	if opt.SSECKey, err = sseKey(s.SSEC); err != nil {
		return opt, fmt.Errorf("setting S3_SSE_C: %w", err)
	}
	if opt.Headers, err = headers(s.AdditionalHeaders); err != nil {
		return opt, fmt.Errorf("setting S3_REQUEST_ADDITIONAL_HEADERS: %w", err)
	}
	return opt, nil
}

// sseKey reads a key of 32 bytes, as it is or in base64.
func sseKey(text string) ([]byte, error) {
	switch len(text) {
	case 0:
		return nil, nil
	case 32:
		return []byte(text), nil
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("want a key of 32 bytes, as it is or in base64")
	}
	return key, nil
}

// headers reads a YAML map, or a list of maps.
func headers(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	var one map[string]string
	if err := yaml.Unmarshal([]byte(text), &one); err == nil {
		return one, nil
	}
	var several []map[string]string
	if err := yaml.Unmarshal([]byte(text), &several); err != nil {
		return nil, fmt.Errorf("want a map of names to values, or a list of such maps")
	}
	all := map[string]string{}
	for _, m := range several {
		for k, v := range m {
			all[k] = v
		}
	}
	return all, nil
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
