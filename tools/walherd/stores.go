package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/azure"
	"github.com/walherd/walherd/storage/fs"
	"github.com/walherd/walherd/storage/gcs"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/sftp"
	"github.com/walherd/walherd/storage/swift"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// within is for a store that retries requests and broken bodies on its own.
var within = retry.Options{Tries: 2}

// store opens the store itself and tells how often what it cannot retry on its
// own is worth another try.
func (a *app) store(ctx context.Context, set *settings.Settings, where settings.Storage) (storage.Bucket, retry.Options, error) {
	s := &set.Stores
	switch where.Kind {
	case settings.KindFile:
		open := fs.Open
		if len(a.set.Failover.Storages) > 0 {
			open = fs.At
		}
		b, err := open(where.Location)
		return b, retry.Options{}, err
	case settings.KindS3:
		opt, err := s3Options(set, where.Location)
		if err != nil {
			return nil, retry.Options{}, err
		}
		if set.S3.LogLevel != "" {
			opt.Log = a.log
		}
		opt.Waiting = a.storeAway(where.Location)
		b, err := s3.Open(ctx, opt)
		return b, within, err
	case settings.KindSSH:
		b, err := sftp.Open(ctx, sftp.Options{
			Location: where.Location, Port: s.SSHPort, User: s.SSHUsername, Password: s.SSHPassword,
			PrivateKeyPath: s.SSHPrivateKeyPath, Passphrase: s.SSHPassphrase, KnownHosts: s.SSHKnownHosts, Insecure: s.SSHInsecure,
		})
		return b, retry.Options{}, err
	case settings.KindGS:
		opt, err := gcsOptions(set, where.Location)
		if err != nil {
			return nil, retry.Options{}, err
		}
		b, err := gcs.Open(ctx, opt)
		return b, within, err
	case settings.KindAZ:
		opt, err := azureOptions(set, where.Location)
		if err != nil {
			return nil, retry.Options{}, err
		}
		b, err := azure.Open(ctx, opt)
		return b, within, err
	case settings.KindSwift:
		opt, err := swiftOptions(set, where.Location)
		if err != nil {
			return nil, retry.Options{}, err
		}
		b, err := swift.Open(ctx, opt)
		return b, within, err
	}
	return nil, retry.Options{}, fmt.Errorf("storage %s is not supported: set WALG_FILE_PREFIX or the prefix of another storage (walherd flags); Alibaba's OSS can be reached by its S3 endpoint with WALG_S3_PREFIX", where.Kind)
}

func gcsOptions(set *settings.Settings, location string) (gcs.Options, error) {
	s := &set.Stores
	opt := gcs.Options{
		KeepSlashes: !s.GCSNormalizePrefix, CredentialsFile: s.GoogleCredentials, EmulatorHost: s.GCSEmulatorHost,
		ChunkSize: int64(s.GCSMaxChunkSize), Timeout: time.Duration(s.GCSContextTimeout) * time.Second,
		MaxRetries: cmp.Or(s.GCSMaxRetries, -1),
	}
	var err error
	if opt.Bucket, opt.Prefix, err = gcs.ParsePrefix(location); err != nil {
		return opt, fmt.Errorf("setting WALG_GS_PREFIX: %w", err)
	}
	if s.GCSEncryptionKey != "" {
		if opt.EncryptionKey, err = base64.StdEncoding.DecodeString(s.GCSEncryptionKey); err != nil || len(opt.EncryptionKey) != 32 {
			return opt, fmt.Errorf("setting GCS_ENCRYPTION_KEY: want 32 bytes in base64")
		}
	}
	return opt, nil
}

func azureOptions(set *settings.Settings, location string) (azure.Options, error) {
	s := &set.Stores
	opt := azure.Options{
		Account: s.AzureAccount, AccessKey: s.AzureAccessKey, SASToken: s.AzureSASToken,
		Environment: s.AzureEnvironmentName, EndpointSuffix: s.AzureEndpointSuffix, Endpoint: s.AzureEndpoint,
		APIVersion: s.AzureBlobStoreVersion, BufferSize: int64(s.AzureBufferSize), MaxBuffers: s.AzureMaxBuffers,
		TryTimeout: time.Duration(s.AzureTryTimeout) * time.Minute,
	}
	var err error
	if opt.Container, opt.Prefix, err = azure.ParsePrefix(location); err != nil {
		return opt, fmt.Errorf("setting WALG_AZ_PREFIX: %w", err)
	}
	return opt, nil
}

func swiftOptions(set *settings.Settings, location string) (swift.Options, error) {
	s := &set.Stores
	opt := swift.Options{
		// Tars that may outgrow an object of the store are kept in segments.
		Segments: int64(set.General.TarSizeThreshold) > 4<<30,
		Settings: map[string]string{
			"OS_AUTH_URL": s.OSAuthURL, "OS_USERNAME": s.OSUsername, "OS_USER_ID": s.OSUserID, "OS_PASSWORD": s.OSPassword,
			"OS_USER_DOMAIN_NAME": s.OSUserDomain, "OS_USER_DOMAIN_ID": s.OSUserDomainID,
			"OS_APPLICATION_CREDENTIAL_ID": s.OSAppCredID, "OS_APPLICATION_CREDENTIAL_NAME": s.OSAppCredName,
			"OS_APPLICATION_CREDENTIAL_SECRET": s.OSAppCredSecret, "OS_TENANT_NAME": s.OSTenantName, "OS_TENANT_ID": s.OSTenantID,
			"OS_PROJECT_NAME": s.OSProjectName, "OS_PROJECT_ID": s.OSProjectID,
			"OS_PROJECT_DOMAIN_NAME": s.OSProjectDomain, "OS_PROJECT_DOMAIN_ID": s.OSProjectDomainID,
			"OS_REGION_NAME": s.OSRegionName, "OS_ENDPOINT_TYPE": s.OSEndpointType, "OS_TRUST_ID": s.OSTrustID,
			"OS_STORAGE_URL": s.OSStorageURL, "OS_AUTH_TOKEN": s.OSAuthToken, "OS_CACERT": s.OSCACert,
			"OS_IDENTITY_API_VERSION": s.OSIdentityVersion, "ST_AUTH": s.STAuth, "ST_USER": s.STUser, "ST_KEY": s.STKey,
		},
	}
	var err error
	if opt.Container, opt.Prefix, err = swift.ParsePrefix(location); err != nil {
		return opt, fmt.Errorf("setting WALG_SWIFT_PREFIX: %w", err)
	}
	return opt, nil
}

// storeAway tells that a store does not answer, once in a while: until a
// request is given up it is silent for minutes.
func (a *app) storeAway(location string) func(error) {
	const every = time.Minute
	var mu sync.Mutex
	var last time.Time
	return func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) < every {
			return
		}
		last = time.Now()
		a.log.Warn("the storage does not answer as it should, trying again", "location", location, telemetry.KeyError, err)
	}
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
	if s.UseYCSessionToken != "" {
		use, err := strconv.ParseBool(s.UseYCSessionToken)
		if err != nil {
			return opt, fmt.Errorf("setting S3_USE_YC_SESSION_TOKEN: %q: want true or false", s.UseYCSessionToken)
		}
		opt.YandexToken = use
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
